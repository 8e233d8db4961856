//! What a process costs, as the kernel counts it.

use std::time::Duration;

use anyhow::{Context, ensure};

/// Length of the kernel's accounting tick: 100 a second on every Linux of ours (`getconf CLK_TCK`).
const TICK: Duration = Duration::from_millis(10);

/// CPU time that a process and its threads, also those that ended, have used.
///
/// # Errors
///
/// If the process is gone.
pub fn cpu(process: u32) -> anyhow::Result<Duration> {
    let file = format!("/proc/{process}/stat");
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    // The name stands in parentheses, and may hold spaces.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    ensure!(fields.len() > 12, "{file}: {} fields after the name", fields.len());
    let ticks: u32 = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    Ok(TICK * ticks)
}

/// CPU time that the threads of a process and of its descendants have used that run now and whose name
/// fits, to the nanosecond.
///
/// # Errors
///
/// If the process is gone.
pub fn cpu_exact(process: u32, fits: impl Fn(&str) -> bool + Copy) -> anyhow::Result<Duration> {
    let folder = format!("/proc/{process}/task");
    let mut nanoseconds: u64 = 0;
    let mut children = Duration::ZERO;
    for thread in std::fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
        let thread = thread?.path();
        let read = |file: &str| std::fs::read_to_string(thread.join(file)).unwrap_or_default();
        if fits(read("comm").trim()) {
            // The first field is the time on a CPU; a thread that has ended meanwhile has none.
            let used = read("schedstat").split_whitespace().next().and_then(|used| used.parse::<u64>().ok());
            nanoseconds += used.unwrap_or_default();
        }
        for child in read("children").split_whitespace().filter_map(|child| child.parse().ok()) {
            children += cpu_exact(child, fits).unwrap_or_default();
        }
    }
    Ok(Duration::from_nanos(nanoseconds) + children)
}

/// Resident memory of a process, in bytes, without what it shares with files (its own code).
///
/// # Errors
///
/// If the process is gone.
pub fn anonymous_bytes(process: u32) -> anyhow::Result<u64> {
    let file = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line
        .and_then(|line| line.split_whitespace().next())
        .with_context(|| format!("{file}: no RssAnon"))?;
    Ok(number.parse::<u64>()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_cost_is_read() {
        let us = std::process::id();
        let before = cpu(us).expect("we run");
        let mut sum = 0_u64;
        while cpu(us).expect("we run") < before + TICK * 3 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_exact(us, |_| true).expect("we run") > TICK * 2);
        assert_eq!(cpu_exact(us, |_| false).expect("we run"), Duration::ZERO);
        assert!(anonymous_bytes(us).expect("we run") > 4096);
        assert!(cpu(0).is_err());
    }
}
