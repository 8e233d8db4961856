//! A sidecar's flags as arguments again, for the `pillion proxy` that `pillion run` starts.

use std::net::SocketAddr;

use clap::ValueEnum;

use super::{
    AttestArguments, InstanceArguments, JoinArguments, ListenArguments, SidecarArguments, TrafficArguments,
};

/// Arguments as they are passed on.
#[derive(Default)]
pub(crate) struct Words(pub(crate) Vec<String>);

impl Words {
    /// One flag with its value.
    pub(crate) fn add(&mut self, flag: &str, value: impl ToString) {
        self.0.extend([flag.to_owned(), value.to_string()]);
    }

    fn add_some(&mut self, flag: &str, value: Option<impl ToString>) {
        value.into_iter().for_each(|value| self.add(flag, value));
    }

    fn add_all<T: ToString>(&mut self, flag: &str, values: &[T]) {
        values.iter().for_each(|value| self.add(flag, value.to_string()));
    }
}

impl SidecarArguments {
    /// The arguments of `pillion proxy`. The join token is not among them: everybody on this host can
    /// read a process's arguments.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut words = Words::default();
        self.join.add_to(&mut words);
        self.instance.add_to(&mut words);
        self.listen.add_to(&mut words);
        self.traffic.add_to(&mut words);
        self.log.add_to(&mut words);
        words.0
    }
}

impl JoinArguments {
    fn add_to(&self, words: &mut Words) {
        let Self { registry, join_token: _, join_token_file, attest } = self;
        words.add_all("--registry", registry);
        words.add_some("--join-token-file", join_token_file.as_ref().map(|file| file.display()));
        attest.add_to(words);
    }
}

impl AttestArguments {
    fn add_to(&self, words: &mut Words) {
        let Self { attest, registry_roots, attest_cert, attest_key, attest_token_file } = self;
        words.add_some("--attest", attest.as_ref().map(value_name));
        for (flag, file) in [
            ("--registry-roots", registry_roots),
            ("--attest-cert", attest_cert),
            ("--attest-key", attest_key),
            ("--attest-token-file", attest_token_file),
        ] {
            words.add_some(flag, file.as_ref().map(|file| file.display()));
        }
    }
}

impl InstanceArguments {
    fn add_to(&self, words: &mut Words) {
        let Self { service, namespace, port, instance_id, label, zone, weight, ttl, .. } = self;
        let Self { advertise, state_dir, spiffe_socket, mesh_domain, .. } = self;
        words.add_some("--spiffe-socket", spiffe_socket.as_ref());
        words.add_some("--mesh-domain", mesh_domain.as_ref());
        words.add_some("--service", service.as_ref());
        words.add("--namespace", namespace);
        words.add_all("--port", port);
        words.add_some("--instance-id", instance_id.as_ref());
        words.add_all("--label", label);
        words.add_some("--zone", Some(zone).filter(|zone| !zone.is_empty()));
        words.add("--weight", weight);
        words.add("--ttl", ttl);
        words.add_some("--advertise", advertise.as_ref());
        words.add_some("--state-dir", state_dir.as_ref().map(|folder| folder.display()));
    }
}

impl ListenArguments {
    fn add_to(&self, words: &mut Words) {
        let Self { inbound, outbound, admin, metrics, dns, upstream, hosts_file, dependency } = self;
        let listeners: [(&str, &Option<SocketAddr>); 5] = [
            ("--inbound", inbound),
            ("--outbound", outbound),
            ("--admin", admin),
            ("--metrics", metrics),
            ("--dns", dns),
        ];
        listeners.iter().for_each(|(flag, address)| words.add_some(flag, address.as_ref()));
        words.add_all("--upstream", upstream);
        words.add_some("--hosts-file", hosts_file.as_ref().map(|file| file.display()));
        words.add_all("--dependency", dependency);
    }
}

impl TrafficArguments {
    fn add_to(&self, words: &mut Words) {
        let Self { egress, access_log, access_log_format, workers, memory_max } = self;
        words.add("--egress", value_name(egress));
        words.add_some("--access-log", access_log.as_ref());
        words.add("--access-log-format", value_name(access_log_format));
        words.add_some("--workers", workers.as_ref());
        words.add_some("--memory-max", memory_max.as_ref());
    }
}

/// How a value of a flag is written.
pub(crate) fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command, FromArgMatches};

    fn parse(words: &[String]) -> SidecarArguments {
        let command = SidecarArguments::augment_args(Command::new("proxy").no_binary_name(true));
        let matches = command.try_get_matches_from(words).expect("valid");
        SidecarArguments::from_arg_matches(&matches).expect("valid")
    }

    #[test]
    fn every_flag_is_passed_on_and_read_back() {
        let text = "--registry a:1 --registry b:2 --join-token-file /t --service web --namespace shop \
            --port admin=9000:grpc --port 8080 --instance-id web-1 --label version=v1 --zone a --weight 7 \
            --ttl 9 --advertise 10.0.0.1:4 --state-dir /s --inbound 0.0.0.0:1 --outbound 127.0.0.1:2 \
            --admin 127.0.0.1:3 --metrics 0.0.0.0:4 --dns 127.0.0.1:5 --upstream 9001=orders.shop:80 \
            --hosts-file /h --dependency orders --egress deny --access-log /dev/stdout \
            --access-log-format json --workers 3 --memory-max 64MiB --log debug --log-format json";
        let proof =
            "--attest x509 --registry-roots /r --attest-cert /c --attest-key /k --attest-token-file /t";
        let mut again = Vec::new();
        let agent = "--spiffe-socket unix:///run/agent.sock --mesh-domain shop.internal";
        for text in [text, proof, agent] {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            let parsed = parse(&words);
            let passed_on = parsed.words();
            assert_eq!(format!("{:?}", parse(&passed_on)), format!("{parsed:?}"));
            again.extend(passed_on);
        }
        let command = SidecarArguments::augment_args(Command::new("proxy"));
        for flag in command.get_arguments().filter_map(|argument| argument.get_long()) {
            let flag = format!("--{flag}");
            assert!(again.contains(&flag) || flag == "--join-token", "{flag} is not passed on");
        }
    }
}
