//! The custom resources of API group `lictor.io`.
