//! The API server is asked for single pods, before their instances are deregistered.

use tokio::time::Instant;

use crate::k8s::{Answer, Question};
use crate::model::owner::Owner;
use crate::plan::critical::looks::Look;
use crate::sync::engine::Engine;

impl Engine {
    /// Asks for the pods of instances that are to go.
    pub(in crate::sync) fn look_at_pods(&mut self, now: Instant) {
        while let Some(Look { id, instance, pod }) = self.rules.criticals.next_look(now) {
            // Both at once, so that the second look finds it done, at the latest.
            self.lapses_are_read(&instance, now);
            let question = Question {
                id,
                namespace: pod.namespace,
                name: pod.name,
            };
            // There is room for all that may be under way; whoever answers ends with the process.
            if self.critical.questions.try_send(question).is_err() {
                let looks = &mut self.rules.criticals.looks;
                looks.answered(id, false, now, rand::random());
            }
        }
    }

    /// The API server showed a pod, or could not be asked.
    pub(in crate::sync) fn absorb_look(&mut self, answer: Answer) {
        let now = Instant::now();
        let Answer { question, seen } = answer;
        let pod = Owner::pod(&question.namespace, &question.name);
        let agrees = match seen {
            Ok(seen) => {
                self.critical.unanswered = None;
                let agrees = self
                    .index
                    .agrees(&pod, seen.pod.as_ref(), seen.node.as_ref());
                if !agrees {
                    tracing::debug!(
                        %pod,
                        "kept for now: the API server shows the pod, or its node, otherwise than it is known"
                    );
                }
                agrees
            }
            Err(why) => {
                if self.critical.unanswered.as_ref() != Some(&why) {
                    tracing::warn!(
                        "nothing of a pod is deregistered for being critical while the API server cannot \
                         be asked for it: {why}"
                    );
                }
                self.critical.unanswered = Some(why);
                false
            }
        };
        let instance = self.rules.criticals.looks.asked_for(question.id).cloned();
        let agrees = agrees && instance.is_none_or(|instance| self.lapses_are_read(&instance, now));
        let looks = &mut self.rules.criticals.looks;
        if let Some(key) = looks.answered(question.id, agrees, now, rand::random()) {
            self.touch_instances([key], now);
        }
    }
}
