//! Registered services and instances as one immutable view, replaced whole on every change.
//!
//! The view is built only from the store's watch: whoever wants a change in it commits one. Beats
//! never reach it; what they lead to (late, silent, back again) does, as a transition.

mod view;

pub use view::{CatalogService, CatalogView, ServicePort};
