//! A release from its install to its end, on an API server whose controllers make its pods.

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::{Bed, BedOptions};
use serde_json::{Value, json};

use super::CHART;
use crate::support::{RELEASE, until};

const KINDS: &str = "deployments,replicasets,pods,poddisruptionbudgets,networkpolicies,roles,rolebindings,\
                     clusterroles,clusterrolebindings,serviceaccounts,services,configmaps,\
                     validatingadmissionpolicies,validatingadmissionpolicybindings";

/// A bed in which the chart is not installed.
struct Empty {
    bed: Bed,
}

impl Empty {
    async fn helm(&self, args: &[&str]) -> Result<String> {
        super::helm(&self.bed, args).await
    }

    async fn upgrade(&self, set: &str) -> Result<()> {
        let args = ["upgrade", "--install", "lictor", CHART, "--set", set];
        self.helm(&args).await?;
        Ok(())
    }

    async fn get(&self, what: &[&str]) -> Result<Value> {
        let mut args = vec!["get", "--namespace", RELEASE, "--output=json"];
        args.extend(what);
        Ok(serde_json::from_str(&self.bed.kubectl(&args).await?)?)
    }

    /// The names of the objects of the release, as `KIND/NAME`.
    async fn objects(&self, kinds: &str) -> Result<Vec<String>> {
        let of_release = "--selector=app.kubernetes.io/instance=lictor";
        let list = self.get(&[kinds, of_release]).await?;
        let items = list["items"].as_array().context("no list")?;
        let name =
            |it: &Value| format!("{}/{}", it["kind"], it["metadata"]["name"]).replace('"', "");
        Ok(items.iter().map(name).collect())
    }

    /// Makes all its pods ready, as a kubelet would, until there are just so many.
    async fn pods_are(&self, count: usize) -> Result<()> {
        let ready = json!({"status": {
            "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let ready = format!("--patch={ready}");
        until("its pods", async || {
            let pods = self.objects("pods").await?;
            let pods = pods.iter().filter_map(|name| name.strip_prefix("Pod/"));
            let pods: Vec<&str> = pods.filter(|name| !name.ends_with("-check")).collect();
            for pod in &pods {
                let patch = ["patch", "pod", pod, "--namespace", RELEASE, &ready];
                let mut patch = patch.to_vec();
                patch.extend(["--subresource=status", "--type=merge"]);
                self.bed.kubectl(&patch).await?;
            }
            ensure!(pods.len() == count, "{pods:?}");
            Ok(())
        })
        .await
    }

    async fn is_as_installed(&self) -> Result<()> {
        let budget = self.get(&["poddisruptionbudget", "lictor"]).await?;
        assert_eq!(budget["spec"]["maxUnavailable"], 1);
        let selector = &budget["spec"]["selector"]["matchLabels"];
        let deployment = self.get(&["deployment", "lictor"]).await?;
        assert_eq!(*selector, deployment["spec"]["selector"]["matchLabels"]);
        assert_eq!(deployment["spec"]["replicas"], 2);
        assert_eq!(self.objects("networkpolicies").await?, Vec::<String>::new());
        ensure!(!self.may_patch_pods().await?);
        assert_eq!(self.actions().await?, json!(["Warn", "Audit"]));
        self.pods_are(2).await
    }

    /// What the admission policy does to what is wrong.
    async fn actions(&self) -> Result<Value> {
        let binding = ["validatingadmissionpolicybinding", "lictor"];
        let binding = self.get(&binding).await?;
        Ok(binding["spec"]["validationActions"].clone())
    }

    async fn may_patch_pods(&self) -> Result<bool> {
        let role = self.get(&["clusterrole", "lictor"]).await?;
        Ok(role["rules"].to_string().contains("pods/status"))
    }
}

/// What teams have of it: their registration, and an administrator's policy.
const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: lictor.io/v1alpha1
kind: ServiceRegistration
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, port: http}
---
apiVersion: lictor.io/v1alpha1
kind: RegistrationPolicy
metadata: {name: shop}
spec: {namespaceSelector: {}, services: ['*']}
";

#[tokio::test]
async fn a_release_is_installed_upgraded_rolled_back_and_uninstalled() -> Result<()> {
    let bed = Bed::start(BedOptions {
        workloads: true,
        controllers: vec![
            "clusterrole-aggregation-controller",
            "validatingadmissionpolicy-status-controller",
        ],
        ..BedOptions::default()
    })
    .await?;
    let release = Empty { bed };
    let bed = &release.bed;
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": RELEASE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        },
    });
    bed.kubectl_apply(&namespace.to_string()).await?;
    release.upgrade("cluster=one").await?;
    release.is_as_installed().await?;
    until("the kinds to be served", async || {
        bed.kubectl_apply(OBJECTS).await
    })
    .await?;
    the_test_is_told(&release).await?;
    people_may_what_their_role_says(&release).await?;
    the_admission_policy_is_understood(&release).await?;
    let difference = [
        "template",
        "lictor",
        CHART,
        "--skip-tests",
        "--set",
        "cluster=one",
    ];
    let rendered = release.helm(&difference).await?;
    let file = bed.dir().join("rendered.yaml").display().to_string();
    std::fs::write(&file, rendered)?;
    bed.kubectl(&["diff", "--filename", &file]).await?;

    release
        .upgrade(
            "cluster=one,replicas=1,readinessGate=true,networkPolicy.enabled=true,\
             admissionPolicy.validationActions={Deny}",
        )
        .await?;
    release.pods_are(1).await?;
    ensure!(release.may_patch_pods().await?);
    assert_eq!(release.actions().await?, json!(["Deny"]));
    assert_eq!(
        release.objects("poddisruptionbudgets").await?,
        Vec::<String>::new()
    );
    assert_eq!(
        release.objects("networkpolicies").await?,
        ["NetworkPolicy/lictor"]
    );

    release.helm(&["rollback", "lictor", "1"]).await?;
    release.is_as_installed().await?;

    release.helm(&["uninstall", "lictor"]).await?;
    until("its pods to go", async || {
        let left = release.objects(KINDS).await?;
        // Helm leaves the pod of its last test, whose log may be wanted.
        ensure!(left == ["Pod/lictor-check"], "{left:?}");
        Ok(())
    })
    .await?;
    what_teams_have_is_there(&release).await?;

    // Under its name it comes back as it was; under another one only if it is told to take the CRDs over.
    release.upgrade("cluster=one").await?;
    release.is_as_installed().await?;
    release.helm(&["uninstall", "lictor"]).await?;
    let other = ["install", "other", CHART, "--set", "cluster=one"];
    let refused = release.helm(&other).await;
    let said = format!("{:#}", refused.map(drop).err().context("it is installed")?);
    ensure!(said.contains("invalid ownership metadata"), "{said}");
    let mut other = other.to_vec();
    other.push("--take-ownership");
    release.helm(&other).await?;
    release.helm(&["uninstall", "other"]).await?;
    what_teams_have_is_there(&release).await?;

    bed.kubectl(&["delete", "namespace", RELEASE, "--timeout=30s"])
        .await?;
    one_file_is_a_full_install(&release).await?;
    what_teams_have_is_there(&release).await
}

/// `helm test` runs a pod, and is told how it ended.
async fn the_test_is_told(release: &Empty) -> Result<()> {
    for (phase, passes) in [("Failed", false), ("Succeeded", true)] {
        let test = release.helm(&["test", "lictor", "--timeout=30s"]);
        let status = json!({"status": {"phase": phase}}).to_string();
        let kubelet = until("the pod of the test", async || {
            let pod = release.get(&["pod", "lictor-check"]).await?;
            // Helm deletes that of the time before first.
            let pending = pod["status"]["phase"] == "Pending"
                && pod["metadata"]["deletionTimestamp"].is_null();
            ensure!(pending, "{}", pod["status"]);
            let args = ["patch", "pod", "lictor-check", "--namespace", RELEASE];
            let mut args = args.to_vec();
            args.extend(["--subresource=status", "--type=merge", "--patch", &status]);
            release.bed.kubectl(&args).await
        });
        let (told, ended) = tokio::join!(test, kubelet);
        ended?;
        ensure!(told.is_ok() == passes, "{phase}: {told:?}");
    }
    Ok(())
}

/// Kubernetes' own roles have what the chart gives them, and nobody but an administrator may write
/// policies.
async fn people_may_what_their_role_says(release: &Empty) -> Result<()> {
    for role in ["view", "edit", "admin"] {
        let clusterrole = format!("--clusterrole={role}");
        let user = format!("--user={role}");
        let binding = [
            "create",
            "rolebinding",
            role,
            &clusterrole,
            &user,
            "-n",
            "shop",
        ];
        release.bed.kubectl(&binding).await?;
    }
    for (verb, kind, allowed) in [
        (
            "list",
            "serviceregistrations",
            &["view", "edit", "admin"][..],
        ),
        ("create", "serviceregistrations", &["edit", "admin"]),
        ("patch", "intentions", &["edit", "admin"]),
        ("delete", "preparedqueries", &["edit", "admin"]),
        ("create", "registrationpolicies", &[]),
        ("patch", "serviceregistrations/status", &[]),
    ] {
        for role in ["view", "edit", "admin"] {
            let user = format!("--as={role}");
            let expected = allowed.contains(&role);
            let (kind, part) = kind.split_once('/').unwrap_or((kind, ""));
            let kind = format!("{kind}.lictor.io");
            let part = format!("--subresource={part}");
            until(
                &format!("{role} to {verb} {kind}: {expected}"),
                async || {
                    let mut may = release.bed.kubectl_command();
                    let may = may.args(["auth", "can-i", verb, &kind, &part]);
                    let may = may.args(["--namespace=shop", &user]);
                    let output = may.output().await?;
                    let said = String::from_utf8_lossy(&output.stdout).into_owned();
                    ensure!(output.status.success() == expected, "{said}");
                    Ok(())
                },
            )
            .await?;
        }
    }
    Ok(())
}

/// The API server's own check of types finds nothing to warn of.
async fn the_admission_policy_is_understood(release: &Empty) -> Result<()> {
    until("the policy to be checked", async || {
        let policy = release
            .get(&["validatingadmissionpolicy", "lictor"])
            .await?;
        let status = &policy["status"];
        let generation = &policy["metadata"]["generation"];
        ensure!(status["observedGeneration"] == *generation, "{status}");
        let warnings = &status["typeChecking"]["expressionWarnings"];
        ensure!(warnings.is_null(), "{warnings}");
        Ok(())
    })
    .await
}

async fn what_teams_have_is_there(release: &Empty) -> Result<()> {
    let registration = release
        .get(&["serviceregistration", "web", "--namespace=shop"])
        .await?;
    ensure!(registration["metadata"]["deletionTimestamp"].is_null());
    release.get(&["registrationpolicy", "shop"]).await?;
    Ok(())
}

/// `kubectl apply` of `deploy/install.yaml`, once it knows the cluster's name.
async fn one_file_is_a_full_install(release: &Empty) -> Result<()> {
    let install = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/install.yaml");
    let install = std::fs::read_to_string(install)?.replace("SET-ME", "one");
    release.bed.kubectl_apply(&install).await?;
    release.pods_are(2).await?;
    let count = install
        .matches("\nkind: CustomResourceDefinition\n")
        .count();
    let crds = release.get(&["crds"]).await?;
    let ours = crds["items"].as_array().into_iter().flatten();
    let ours = ours.filter(|it| it["spec"]["group"] == "lictor.io");
    assert_eq!((ours.count(), count), (4, 4));
    Ok(())
}
