//! Compares the labels of containers with those of their images. An engine merges the image's
//! labels into the container's, so the operator may not have set a label that the image has too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bollard::models::ImageInspect;

use super::engine::Engine;
use super::error::Error;
use super::object::{ContainerSummary, Labels};
use crate::discovery::agent_labels;
use crate::discovery::text::to_one_line;
use crate::error_chain::error_chain;

/// Who set the labels of a container: the operator, or its image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LabelOrigin {
    /// The operator set the labels that are left: labels that widen trust were removed where the
    /// image has the same one, and `loopgate.agent` was not among them. Also the value of
    /// containers that were not compared, because no decision depends on them.
    #[default]
    Operator,
    /// The image has the same label `loopgate.agent`, with this value, so the label was removed. It
    /// makes an agent: a value that makes none is kept.
    Image(String),
    /// Unknown, since the image's labels can't be read for this reason. No label that widens trust
    /// counts.
    Unknown(String),
}

/// A cache of the labels of images, by the image's id. The id is a digest of the content, so the
/// labels never change.
#[derive(Clone, Debug, Default)]
pub struct ImageLabels(Arc<Mutex<BTreeMap<String, Labels>>>);

impl ImageLabels {
    /// Compares the labels of `containers` with those of their images, and changes each container
    /// as `remove_image_labels` does. Returns the origin of the labels of each container, in the
    /// same order.
    ///
    /// Only containers on which a decision depends are compared: those that may be agents, by label
    /// or because their service is one of `services`, and all containers of the projects of these.
    pub async fn remove_labels_of_images(
        &self,
        engine: &Engine,
        services: &[String],
        containers: &mut [ContainerSummary],
    ) -> Vec<LabelOrigin> {
        let claims_agent = |container: &ContainerSummary| {
            let service =
                label(container, agent_labels::SERVICE).or_else(|| label(container, agent_labels::SWARM_SERVICE));
            label(container, agent_labels::AGENT).is_some()
                || service.is_some_and(|service| services.iter().any(|wanted| matches_service(service, wanted)))
        };
        let projects: BTreeSet<&str> =
            containers.iter().filter(|container| claims_agent(container)).flat_map(projects_of).collect();
        let is_compared: Vec<bool> = containers
            .iter()
            .map(|container| {
                claims_agent(container) || projects_of(container).any(|project| projects.contains(project))
            })
            .collect();
        let ids: BTreeSet<String> = containers
            .iter()
            .zip(&is_compared)
            .filter(|(_, is_compared)| **is_compared)
            .map(|(container, _)| container.image.clone().unwrap_or_default())
            .collect();
        let images = self.read_labels_of_images(engine, ids).await;
        let compared = |(container, is_compared): (&mut ContainerSummary, bool)| match images
            .get(container.image.as_deref().unwrap_or_default())
        {
            Some(Ok(image_labels)) if is_compared => remove_image_labels(container, image_labels),
            Some(Err(error)) if is_compared => LabelOrigin::Unknown(error.clone()),
            _ => LabelOrigin::Operator,
        };
        containers.iter_mut().zip(is_compared).map(compared).collect()
    }

    /// Returns the labels of each image, or the reason why they can't be read. Removes all other
    /// images from the cache.
    async fn read_labels_of_images(
        &self,
        engine: &Engine,
        ids: BTreeSet<String>,
    ) -> BTreeMap<String, Result<Labels, String>> {
        let mut cached = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut labels_by_id = BTreeMap::new();
        let mut refused: Option<String> = None;
        for id in ids {
            let labels = match (cached.remove(&id), &refused) {
                (Some(labels), _) => Ok(labels),
                (None, Some(error)) => Err(error.clone()),
                (None, None) if id.is_empty() => Err("the engine does not name its image".to_owned()),
                (None, None) => {
                    let inspected = engine.inspect_image(&id).await;
                    inspected.map(labels_of).map_err(|error| {
                        let message = to_one_line(&error_chain(&error));
                        // A filter that refuses one image refuses all of them.
                        refused = Some(message.clone()).filter(|_| matches!(error, Error::Refused { .. }));
                        message
                    })
                }
            };
            labels_by_id.insert(id, labels);
        }
        let readable = labels_by_id.iter().filter_map(|(id, labels)| Some((id.clone(), labels.clone().ok()?)));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = readable.collect();
        labels_by_id
    }
}

/// Returns the labels that the engine gives to containers of `image`.
fn labels_of(image: ImageInspect) -> Labels {
    let labels = image.config.and_then(|config| config.labels).unwrap_or_default();
    labels.into_iter().map(|(name, value)| (name, Some(value))).collect()
}

/// Returns whether `service` is `wanted`, or could be `STACK_wanted` of a Swarm stack.
fn matches_service(service: &str, wanted: &str) -> bool {
    service.strip_suffix(wanted).is_some_and(|rest| rest.is_empty() || rest.ends_with('_'))
}

fn label<'a>(container: &'a ContainerSummary, name: &str) -> Option<&'a str> {
    container.labels.as_ref()?.get(name)?.as_deref()
}

fn projects_of(container: &ContainerSummary) -> impl Iterator<Item = &str> {
    [agent_labels::PROJECT, agent_labels::STACK].into_iter().filter_map(|name| label(container, name))
}

/// Removes from `container` the labels that can widen trust and that the image has with the same
/// value: those that make it an agent, and those that say which project and service it is of. Sets
/// `image_has_same_scopes`. Returns the origin of the labels that are left.
///
/// Labels that narrow trust are kept, since the operator may have set them too:
/// `loopgate.agent=false`, and the scope cap. Project and service are kept if Compose created the
/// container: Compose sets both itself, and an image that Compose built has the same labels.
fn remove_image_labels(container: &mut ContainerSummary, image_labels: &Labels) -> LabelOrigin {
    let Some(labels) = &mut container.labels else { return LabelOrigin::Operator };
    let is_shared =
        |labels: &Labels, name: &str| labels.get(name).is_some_and(|value| image_labels.get(name) == Some(value));
    container.image_has_same_scopes = is_shared(labels, agent_labels::SCOPES);
    let is_set_by_compose =
        agent_labels::SET_BY_COMPOSE.iter().any(|name| labels.contains_key(*name) && !is_shared(labels, name));
    for name in [agent_labels::PROJECT, agent_labels::SERVICE, agent_labels::STACK, agent_labels::SWARM_SERVICE] {
        let is_set_by_compose = is_set_by_compose && matches!(name, agent_labels::PROJECT | agent_labels::SERVICE);
        if is_shared(labels, name) && !is_set_by_compose {
            labels.remove(name);
        }
    }
    let makes_agent = |value: &String| matches!(agent_labels::parse_kind(value), Ok(Some(_)));
    match labels.get(agent_labels::AGENT).cloned().flatten().filter(makes_agent) {
        Some(agent) if is_shared(labels, agent_labels::AGENT) => {
            labels.remove(agent_labels::AGENT);
            LabelOrigin::Image(agent)
        }
        _ => LabelOrigin::Operator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels_from(list: &[(&str, &str)]) -> Labels {
        list.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect()
    }

    #[test]
    fn only_labels_that_widen_trust_are_removed_if_the_image_has_them_too() {
        let project = (agent_labels::PROJECT, "claws");
        let set_by_compose = (agent_labels::SET_BY_COMPOSE[0], "0a1b");
        let services = [
            (agent_labels::SERVICE, "tester"),
            (agent_labels::STACK, "claws"),
            (agent_labels::SWARM_SERVICE, "claws_tester"),
        ];
        for (labels, image_labels, remaining, origin, image_has_same_scopes) in [
            (
                vec![(agent_labels::AGENT, "true"), project],
                vec![(agent_labels::AGENT, "true")],
                vec![project],
                LabelOrigin::Image("true".into()),
                false,
            ),
            (
                vec![(agent_labels::AGENT, "true")],
                vec![(agent_labels::AGENT, "address")],
                vec![(agent_labels::AGENT, "true")],
                LabelOrigin::Operator,
                false,
            ),
            (
                vec![(agent_labels::AGENT, "false")],
                vec![(agent_labels::AGENT, "false")],
                vec![(agent_labels::AGENT, "false")],
                LabelOrigin::Operator,
                false,
            ),
            (
                vec![(agent_labels::AGENT, "?")],
                vec![(agent_labels::AGENT, "?")],
                vec![(agent_labels::AGENT, "?")],
                LabelOrigin::Operator,
                false,
            ),
            (
                vec![(agent_labels::SCOPES, "a")],
                vec![(agent_labels::SCOPES, "a")],
                vec![(agent_labels::SCOPES, "a")],
                LabelOrigin::Operator,
                true,
            ),
            (
                vec![(agent_labels::SCOPES, "a")],
                vec![(agent_labels::SCOPES, "b")],
                vec![(agent_labels::SCOPES, "a")],
                LabelOrigin::Operator,
                false,
            ),
            (services.to_vec(), services.to_vec(), vec![], LabelOrigin::Operator, false),
            (vec![project, ("x", "y")], vec![project, ("x", "y")], vec![("x", "y")], LabelOrigin::Operator, false),
            (vec![project, set_by_compose], vec![project], vec![project, set_by_compose], LabelOrigin::Operator, false),
            (
                vec![project, set_by_compose],
                vec![project, set_by_compose],
                vec![set_by_compose],
                LabelOrigin::Operator,
                false,
            ),
        ] {
            let mut container = ContainerSummary { labels: Some(labels_from(&labels)), ..ContainerSummary::default() };
            assert_eq!(
                remove_image_labels(&mut container, &labels_from(&image_labels)),
                origin,
                "{labels:?} {image_labels:?}"
            );
            assert_eq!(container.labels, Some(labels_from(&remaining)), "{labels:?} {image_labels:?}");
            assert_eq!(container.image_has_same_scopes, image_has_same_scopes, "{labels:?} {image_labels:?}");
        }
    }
}
