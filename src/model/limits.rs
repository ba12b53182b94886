//! How much may be asked of Consul for one object, whether in an annotation or in a resource.

/// Most services that the annotations of a pod may name.
pub const MAX_SERVICES: usize = 64;
/// Most tags of one instance.
pub const MAX_TAGS: usize = 64;
/// Longest tag, in bytes.
pub const MAX_TAG_BYTES: usize = 255;
/// Most meta pairs that a user may give: of Consul's 64 the rest are for our own marks.
pub const MAX_META_PAIRS: usize = 48;
/// Longest meta key, in bytes (Consul's limit).
pub const MAX_META_KEY_BYTES: usize = 128;
/// Longest meta value, in bytes (Consul's limit).
pub const MAX_META_VALUE_BYTES: usize = 512;
/// Most endpoints that a `ServiceRegistration` may list.
pub const MAX_ENDPOINTS: usize = 256;
/// Most checks that a `ServiceRegistration` may list.
pub const MAX_CHECKS: usize = 16;
/// Longest name of a service that has proxies beside its instances.
pub const MAX_NAME_WITH_SIDECAR: usize = 49;
/// Most prepared queries that a `ServiceRegistration` may list.
pub const MAX_QUERIES: usize = 32;
