//! Which service, and which instance of it, somebody may be who has proven a fact.

use pillion_model::name::{InstanceId, NodeId, ServiceName};

use super::{Method, Proven};

/// Rules, any one of which is enough.
#[derive(Debug, Default)]
pub(super) struct Rules(pub(super) Vec<Rule>);

/// One rule: whoever has proven this may be that.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) method: Method,
    /// A fact; each `*` stands for one character or more, none of them `/`.
    pub(super) fact: String,
    /// `<name>.<namespace>`; `{1}` is what the first `*` stands for, `{2}` the second.
    pub(super) service: String,
    /// The only instance; `None`: any. With `{1}` and so on, too.
    pub(super) instance: Option<String>,
}

impl Rules {
    /// Whether whoever has proven this may be that node.
    pub(super) fn allow(&self, proven: &Proven, node: &NodeId) -> Result<(), String> {
        let mut may_be = Vec::new();
        for rule in self.0.iter().filter(|rule| rule.method == proven.method) {
            for fact in &proven.facts {
                let Some((service, instance)) = rule.allows(fact) else { continue };
                let fits = instance.as_ref().is_none_or(|instance| *instance == node.instance);
                if service == node.service && fits {
                    return Ok(());
                }
                let only = instance.map(|id| format!(" as instance {}", id.as_str())).unwrap_or_default();
                may_be.push(format!("{service}{only}"));
            }
        }
        may_be.dedup();
        match &may_be[..] {
            [] => Err(format!("no rule of --attestation fits ({})", proven.facts.join(", "))),
            some => Err(format!("it may be {}", some.join(" or "))),
        }
    }
}

impl Rule {
    /// Whom this fact allows to be; `None` if it is another fact, or what it makes is no name.
    fn allows(&self, fact: &str) -> Option<(ServiceName, Option<InstanceId>)> {
        let captured = captures(&self.fact, fact)?;
        let (service, namespace) = self.service.split_once('.')?;
        let fill = |template: &str| fill(template, &captured);
        let service = ServiceName::new(&fill(namespace), &fill(service)).ok()?;
        let instance = self.instance.as_deref().map(|id| InstanceId::parse(&fill(id)));
        Some((service, instance.transpose().ok()?))
    }

    /// What is wrong with it, with the field.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let stars = self.fact.matches('*').count();
        let templates = [("service", Some(&self.service)), ("instance", self.instance.as_ref())];
        for (field, template) in templates {
            for name in template.into_iter().flat_map(|template| template.split('{').skip(1)) {
                let number = name.split_once('}').and_then(|(number, _)| number.parse::<usize>().ok());
                if !number.is_some_and(|number| (1..=stars).contains(&number)) {
                    return Err((field, format!("want {{1}} to {{{stars}}}, one for each * of the fact")));
                }
            }
        }
        // Whatever a star stands for, the rest must be a name.
        let example = vec!["x".to_owned(); stars];
        let fill = |template: &str| fill(template, &example);
        let Some((service, namespace)) = self.service.split_once('.') else {
            return Err(("service", "want <name>.<namespace>, such as web.shop".to_owned()));
        };
        ServiceName::new(&fill(namespace), &fill(service)).map_err(|error| ("service", error.to_string()))?;
        if let Some(instance) = &self.instance {
            InstanceId::parse(&fill(instance)).map_err(|error| ("instance", error.to_string()))?;
        }
        Ok(())
    }
}

/// What each `*` of `pattern` stands for in `text`; `None` if it does not fit. The shortest that fits.
fn captures(pattern: &str, text: &str) -> Option<Vec<String>> {
    let Some((literal, rest)) = pattern.split_once('*') else {
        return (pattern == text).then(Vec::new);
    };
    let text = text.strip_prefix(literal)?;
    for (end, _) in text.char_indices().skip(1).chain([(text.len(), ' ')]) {
        if text[..end].is_empty() || text[..end].contains('/') {
            continue;
        }
        if let Some(others) = captures(rest, &text[end..]) {
            return Some(std::iter::once(text[..end].to_owned()).chain(others).collect());
        }
    }
    None
}

fn fill(template: &str, captured: &[String]) -> String {
    let numbered = captured.iter().enumerate();
    numbered.fold(template.to_owned(), |text, (at, value)| text.replace(&format!("{{{}}}", at + 1), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_makes_the_service_of_its_rule_and_no_other() {
        let rule = |fact: &str, service: &str, instance: Option<&str>| Rule {
            method: Method::Kubernetes,
            fact: fact.to_owned(),
            service: service.to_owned(),
            instance: instance.map(str::to_owned),
        };
        let rules = Rules(vec![
            rule("shop/web", "web.shop", None),
            rule("prod-*/*", "{2}.{1}", None),
            rule("db/pg-*", "pg.db", Some("pg-{1}")),
        ]);
        for (fact, node, want) in [
            ("shop/web", "shop/web/web-1", None),
            ("shop/web", "shop/orders/o", Some("it may be web.shop")),
            ("shop/other", "shop/web/web-1", Some("no rule of --attestation fits (shop/other)")),
            ("prod-eu/orders", "eu/orders/1", None),
            ("prod-eu/orders", "us/orders/1", Some("it may be orders.eu")),
            ("prod-/orders", "eu/orders/1", Some("no rule")),
            ("prod-a/b/c", "b/c/1", Some("no rule")),
            ("prod-eu/a.b", "eu/a/1", Some("no rule")), // a.b is no name of a service
            ("db/pg-0", "db/pg/pg-0", None),
            ("db/pg-0", "db/pg/pg-1", Some("it may be pg.db as instance pg-0")),
        ] {
            let proven = Proven { method: Method::Kubernetes, facts: vec![fact.to_owned()] };
            let node: NodeId = node.parse().expect("a node");
            let allowed = rules.allow(&proven, &node);
            match want {
                None => assert_eq!(allowed, Ok(()), "{fact} as {node}"),
                Some(want) => {
                    let reason = allowed.expect_err(fact);
                    assert!(reason.contains(want), "{fact} as {node}: {reason}");
                }
            }
            let other = Proven { method: Method::Aws, facts: vec![fact.to_owned()] };
            assert!(rules.allow(&other, &node).is_err(), "{fact} by another kind of proof");
        }
    }

    #[test]
    fn rules_that_can_make_no_name_are_told_by_field() {
        for (fact, service, instance, want) in [
            ("a/*", "{2}.x", None, "service"),
            ("a/*", "{1}", None, "service"),
            ("a/*", "{1}.X", None, "service"),
            ("a", "{}.x", None, "service"),
            ("a", "b.c", Some("{1}"), "instance"),
            ("a", "b.c", Some(""), "instance"),
        ] {
            let instance = instance.map(str::to_owned);
            let rule =
                Rule { method: Method::X509, fact: fact.to_owned(), service: service.to_owned(), instance };
            assert_eq!(rule.check().expect_err(service).0, want, "{rule:?}");
        }
    }
}
