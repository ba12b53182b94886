//! Pieces of schema that the derive macros cannot express.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

/// The CRD without what the API server would complain about.
pub(super) fn polished(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    crd
}
