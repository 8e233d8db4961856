//! Subsets, and the values of metadata.

use pillion_model::metadata::{Fields, Value};
use pillion_model::subset::{
    SelectorFallback, SubsetFallback, SubsetLocalityWeights, SubsetSelector, Subsets,
};
use proptest::collection::btree_map;
use proptest::prelude::*;
use proptest::sample::select;

use super::{few, free, some, text};

pub(crate) fn fields() -> BoxedStrategy<Fields> {
    btree_map(text(), value(), 0..3).boxed()
}

/// Those that are not texts.
pub(crate) fn other_fields() -> BoxedStrategy<Fields> {
    let is_other = |fields: &Fields| !fields.values().any(|value| matches!(value, Value::Text(_)));
    fields().prop_filter("a text", is_other).boxed()
}

fn value() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-1e9..1e9).prop_map(Value::Number),
        free().prop_map(Value::Text),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            few(inner.clone()).prop_map(Value::List),
            btree_map(text(), inner, 0..3).prop_map(Value::Struct),
        ]
    })
    .boxed()
}

pub(crate) fn subsets() -> BoxedStrategy<Subsets> {
    let weights =
        [SubsetLocalityWeights::Ignored, SubsetLocalityWeights::Kept, SubsetLocalityWeights::Scaled];
    (some(selector()), fallback(), fields(), any::<[bool; 4]>(), select(weights.to_vec()))
        .prop_map(|(selectors, fallback, default, [list, panic, redundant, others], locality_weights)| {
            Subsets {
                selectors,
                fallback,
                default,
                list_as_any: list,
                locality_weights,
                panic_mode_any: panic,
                allow_redundant_keys: redundant,
                fallback_list: others,
            }
        })
        .boxed()
}

fn fallback() -> BoxedStrategy<SubsetFallback> {
    select(vec![SubsetFallback::None, SubsetFallback::Any, SubsetFallback::Default]).boxed()
}

fn selector() -> BoxedStrategy<SubsetSelector> {
    let two = |fallback| SubsetSelector {
        keys: ["a".to_owned(), "b".to_owned()].into(),
        fallback,
        single_host: false,
    };
    let cluster = || proptest::option::of(fallback().prop_map(SelectorFallback::Cluster));
    prop_oneof![
        (text(), cluster(), any::<bool>()).prop_map(|(key, fallback, single_host)| SubsetSelector {
            keys: [key].into(),
            fallback,
            single_host,
        }),
        cluster().prop_map(two),
        Just(two(Some(SelectorFallback::Keys(["b".to_owned()].into())))),
    ]
    .boxed()
}
