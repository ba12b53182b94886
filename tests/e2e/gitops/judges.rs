//! How Flux and Argo CD judge an object.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use mlua::{Lua, LuaOptions, LuaSerdeExt as _, StdLib, Table};
use serde_json::Value;

/// What both say: the status of kstatus, and the health of Argo CD.
pub type Verdict = (String, String);

/// What kstatus says of a kind that it has no rules of its own for, which is what Flux goes by: `Compute`
/// in `pkg/kstatus/status` of sigs.k8s.io/cli-utils, read in v0.37.2.
pub fn kstatus(object: &Value) -> &'static str {
    let (metadata, status) = (&object["metadata"], &object["status"]);
    let is = |condition: &Value, kind: &str, value: &str| {
        condition["type"] == kind && condition["status"] == value
    };
    if !metadata["deletionTimestamp"].is_null() {
        return "Terminating";
    }
    let observed = &status["observedGeneration"];
    if !observed.is_null() && *observed != metadata["generation"] {
        return "InProgress";
    }
    let conditions = || status["conditions"].as_array().into_iter().flatten();
    for condition in conditions() {
        if is(condition, "Reconciling", "True") {
            return "InProgress";
        }
        if is(condition, "Stalled", "True") {
            return "Failed";
        }
    }
    for condition in conditions() {
        if is(condition, "Ready", "True") {
            return "Current";
        }
        if is(condition, "Ready", "False") || is(condition, "Ready", "Unknown") {
            return "InProgress";
        }
    }
    "Current"
}

/// Argo CD, with the health checks of `examples/gitops/`.
pub struct Argo {
    lua: Lua,
    config: BTreeMap<String, String>,
}

impl Argo {
    /// With the Lua and those of its libraries that Argo CD has.
    pub fn new() -> Result<Self> {
        let file = include_str!("../../../examples/gitops/argocd/health/argocd-cm.yaml");
        let map: Value = serde_saphyr::from_str(file)?;
        Ok(Self {
            lua: Lua::new_with(StdLib::TABLE, LuaOptions::default())?,
            config: serde_json::from_value(map["data"].clone())?,
        })
    }

    /// `GetResourceHealth` in `pkg/health` of gitops-engine, read in v0.7.3. Without a check there is no
    /// health.
    pub fn health(&self, object: &Value) -> Result<String> {
        if !object["metadata"]["deletionTimestamp"].is_null() {
            return Ok("Progressing".to_owned());
        }
        let kind = object["kind"].as_str().context("no kind")?;
        let key = format!("resource.customizations.health.lictor.io_{kind}");
        let script = self.config.get(&key);
        let script = script.with_context(|| format!("no {key}"))?;
        self.lua.globals().set("obj", self.lua.to_value(object)?)?;
        let health: Table = self.lua.load(script).eval()?;
        let message: String = health.get("message")?;
        ensure!(!message.is_empty(), "{kind} without a message");
        Ok(health.get("status")?)
    }

    /// What both judges say.
    pub fn and_kstatus(&self, object: &Value) -> Result<Verdict> {
        Ok((kstatus(object).to_owned(), self.health(object)?))
    }
}

/// The table of `docs/gitops.md`: what is said there of each reason.
pub fn documented() -> BTreeMap<String, Verdict> {
    let page = include_str!("../../../docs/gitops.md");
    let mut all = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [_, reasons, kstatus, argo] = cells[..] else {
            continue;
        };
        let verdict = (kstatus.trim_matches('`').to_owned(), argo.to_owned());
        for reason in reasons.split(", ").filter(|text| text.starts_with('`')) {
            all.insert(reason.trim_matches('`').to_owned(), verdict.clone());
        }
    }
    all
}

#[test]
fn the_docs_have_the_check_that_argo_cd_is_given() -> Result<()> {
    let page = include_str!("../../../docs/gitops.md");
    let (_, shown) = page.split_once("```lua\n").context("no Lua")?;
    let (shown, _) = shown.split_once("```").context("no end of it")?;
    let argo = Argo::new()?;
    assert_eq!(argo.config.len(), 3);
    for (key, script) in &argo.config {
        assert_eq!(script.trim(), shown.trim(), "{key}");
    }
    Ok(())
}
