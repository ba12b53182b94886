//! What differs between two entries.

use crate::model::entry::{Mesh, Proxy, Service};

/// The names of the fields that differ, as Consul calls them; empty where nothing does.
#[must_use]
pub fn fields(there: &Service, wanted: &Service) -> Vec<&'static str> {
    // Taken apart without `..`, so that a new field cannot be forgotten here.
    let Service {
        name,
        address,
        port,
        tagged_addresses,
        tags,
        meta,
        weights,
        enable_tag_override,
        mesh,
    } = wanted;
    let native = |mesh: &Option<Box<Mesh>>| matches!(mesh.as_deref(), Some(Mesh::Native));
    let (is, should) = (proxy(there), proxy(wanted));
    [
        ("name", there.name != *name),
        ("address", there.address != *address),
        ("port", there.port != *port),
        (
            "tagged-addresses",
            there.tagged_addresses != *tagged_addresses,
        ),
        ("tags", there.tags != *tags),
        ("meta", there.meta != *meta),
        ("weights", there.weights != *weights),
        (
            "enable-tag-override",
            there.enable_tag_override != *enable_tag_override,
        ),
        ("kind", is.is_some() != should.is_some()),
        ("connect", native(&there.mesh) != native(mesh)),
        ("proxy", is != should),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
}

fn proxy(service: &Service) -> Option<&Proxy> {
    match service.mesh.as_deref() {
        Some(Mesh::Proxy(proxy)) => Some(proxy),
        Some(Mesh::Native) | None => None,
    }
}
