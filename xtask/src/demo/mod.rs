//! `cargo xtask demo`: what Lictor does, on servers of its own.

mod kubelet;
mod lictor;
mod screen;
mod steps;
mod view;

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use lictor_testbed::{
    Bed, BedOptions,
    tools::{self, Progress},
};
use serde_json::json;
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
};

use kubelet::Kubelet;
use lictor::{Lictor, Setup};
use screen::Screen;
use steps::{SERVICES, Stage};
use view::View;

/// The name under which it writes to Consul.
const CLUSTER: &str = "demo";
/// Where the examples live.
const NAMESPACE: &str = "shop";
/// Where the chart would be installed.
const SYSTEM: &str = "lictor-system";
/// The exit code of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Run Lictor between a Kubernetes API and a Consul of its own, and show what it does.
///
/// Fails if anything does not happen that should.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave everything up at the end, to try more by hand, until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

impl Args {
    /// Builds what is missing, plays all steps, and ends what it started.
    pub async fn run(self) -> Result<ExitCode> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask has no parent")?;
        // What takes longest, and what may lack a Go, comes first.
        tools::ensure(Progress::Stderr).await?;
        let program = lictor::build(root)?;
        // From here on there is something to end.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::select! {
            played = self.play(root, &program) => played.map(|()| ExitCode::SUCCESS),
            _ = interrupt.recv() => Ok(self.interrupted()),
            _ = terminate.recv() => Ok(self.interrupted()),
            _ = hangup.recv() => Ok(self.interrupted()),
        }
    }

    /// What was started ends with what held it.
    fn interrupted(&self) -> ExitCode {
        println!("\nEverything is ended.");
        ExitCode::from(if self.keep { 0 } else { INTERRUPTED })
    }

    async fn play(&self, root: &Path, program: &Path) -> Result<()> {
        let screen = Screen::new();
        println!("Lictor between a Kubernetes API and a Consul of its own, on this machine.");
        let (mut stage, mut kubelet) = set_up(screen, root, program).await?;
        if let Err(error) = stage.play(&mut kubelet).await {
            let log = fs::read_to_string(&stage.setup.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(20)..].join("\n");
            eprintln!("\nThe end of Lictor's log:\n{end}\n");
            return Err(error);
        }
        println!("\nAll of this happened as it should.");
        if self.keep {
            invite(&stage)?;
            return kubelet.run().await;
        }
        println!("`cargo xtask demo --keep` leaves everything up, to try more by hand.");
        Ok(())
    }
}

/// Starts everything, up to a Lictor that knows both sides and has nothing to do.
async fn set_up(screen: Screen, root: &Path, program: &Path) -> Result<(Stage, Kubelet)> {
    let doing = screen.doing("starting etcd, kube-apiserver, kube-controller-manager and Consul");
    let bed = Bed::start(BedOptions {
        consul_config: json!({"ui_config": {"enabled": true}}),
        ..BedOptions::default()
    })
    .await?;
    doing.done();

    let doing = screen.doing("applying the CRDs and the chart's ServiceAccount with its rights");
    let crds = Command::new(program).arg("crds").output().await?;
    bed.kubectl_apply(&String::from_utf8(crds.stdout)?).await?;
    bed.kubectl(&["create", "namespace", SYSTEM]).await?;
    let chart = root.join("charts/lictor").display().to_string();
    let set = format!("--set=cluster={CLUSTER}");
    let account = bed
        .helm(&[
            "template",
            "lictor",
            &chart,
            "--namespace",
            SYSTEM,
            &set,
            "--show-only=templates/serviceaccount.yaml",
            "--show-only=templates/rbac.yaml",
        ])
        .await?;
    bed.kubectl_apply(&account).await?;
    doing.done();

    let client = bed.kube_client()?;
    let doing = screen.doing(&format!("creating the nodes {}", Kubelet::nodes()));
    let kubelet = Kubelet::start(&client).await?;
    doing.done();

    let doing = screen.doing(&format!("starting lictor run --cluster {CLUSTER}"));
    let setup = Setup {
        program: program.to_owned(),
        cluster: CLUSTER,
        namespace: SYSTEM,
        kubeconfig: bed.service_account_kubeconfig(SYSTEM, "lictor").await?,
        consul: bed.consul_addr(),
        log: bed.dir().join("lictor.log"),
    };
    let lictor = Lictor::start(&setup).await?;
    doing.done();

    let view = View::open(&bed.consul_addr(), &SERVICES).await?;
    let stage = Stage {
        screen,
        client,
        view,
        setup,
        lictor: Some(lictor),
        examples: root.join("examples").display().to_string(),
        bed,
    };
    Ok((stage, kubelet))
}

/// How to look at what stays up.
fn invite(stage: &Stage) -> Result<()> {
    let bed = &stage.bed;
    let lictor = stage.lictor.as_ref().context("lictor does not run")?;
    println!(
        "
Everything stays up until you press Ctrl-C here. In another terminal:

  export KUBECONFIG='{kubeconfig}'
  export CONSUL_HTTP_ADDR={consul}
  export PATH='{bin}':\"$PATH\"

  kubectl -n {NAMESPACE} get pods,serviceregistrations
  curl -s $CONSUL_HTTP_ADDR/v1/health/service/web
  consul catalog nodes -service=web -detailed

Pods run here as on a cluster, except that nothing runs in them. Try:

  kubectl -n {NAMESPACE} annotate --overwrite pod web-0 lictor.io/tags='frontend, v2'
  kubectl -n {NAMESPACE} annotate --overwrite pod web-0 {ready}=false   # fails its readiness
  kubectl -n {NAMESPACE} delete pod web-1
  kubectl -n {NAMESPACE} get events

  Consul's UI       {consul}/ui/
  Lictor's metrics  http://{lictor}/metrics
  Lictor's log      {log}

Ctrl-C ends everything and removes its files.",
        kubeconfig = bed.kubeconfig_path().display(),
        consul = bed.consul_addr(),
        bin = bed.tools().bin.display(),
        ready = kubelet::READY,
        lictor = lictor.address(),
        log = stage.setup.log.display(),
    );
    Ok(())
}
