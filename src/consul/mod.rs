//! A thin typed client of Consul's HTTP API.
