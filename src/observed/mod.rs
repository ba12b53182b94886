//! What Consul is known to hold. Pure.
