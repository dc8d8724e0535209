//! The labels of images. An engine merges them into those of the container, so a label that an image has too is not the operator's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bollard::models::ImageInspect;

use super::engine::Engine;
use super::error::Error;
use super::object::{ContainerSummary, Labels};
use crate::discovery::agent_labels as labels;
use crate::discovery::text::one_line;
use crate::error_chain::error_chain;

/// Whether the labels of a container are the operator's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// They were compared with those of the image, and what the image has too was removed.
    #[default]
    Compared,
    /// The same, and the image has this value of `loopgate.agent`.
    OfImage(String),
    /// The labels of the image can't be read, so none counts.
    Unknown(String),
}

/// The labels of images that were read. An image's id is a digest of its content, so they never change.
#[derive(Clone, Debug, Default)]
pub struct Images(Arc<Mutex<BTreeMap<String, Labels>>>);

impl Images {
    /// Compares the labels of `containers` with those of their images, and removes what the images have too. Returns the origin of the
    /// labels of each container, in the order of the list.
    ///
    /// Only containers on which a decision depends are compared: those that the operator may have made an agent, by label or because their
    /// service is one of `services`, and those of the same projects, among which is the gateway's.
    pub async fn compare(&self, engine: &Engine, services: &[String], containers: &mut [ContainerSummary]) -> Vec<Origin> {
        let is_subject = |container: &ContainerSummary| {
            let service = label(container, labels::SERVICE).or_else(|| label(container, labels::SWARM_SERVICE));
            label(container, labels::AGENT).is_some() || service.is_some_and(|service| services.iter().any(|named| names(service, named)))
        };
        let projects: BTreeSet<&str> = containers.iter().filter(|one| is_subject(one)).flat_map(projects_of).collect();
        let matters: Vec<bool> =
            containers.iter().map(|one| is_subject(one) || projects_of(one).any(|project| projects.contains(project))).collect();
        let ids: BTreeSet<String> = containers
            .iter()
            .zip(&matters)
            .filter(|(_, matters)| **matters)
            .map(|(one, _)| one.image.clone().unwrap_or_default())
            .collect();
        let images = self.read(engine, ids).await;
        let compared =
            |(container, matters): (&mut ContainerSummary, bool)| match images.get(container.image.as_deref().unwrap_or_default()) {
                Some(Ok(of_image)) if matters => strip(container, of_image),
                Some(Err(error)) if matters => Origin::Unknown(error.clone()),
                _ => Origin::Compared,
            };
        containers.iter_mut().zip(matters).map(compared).collect()
    }

    /// Returns the labels of each image, or why they can't be read; forgets all other images.
    async fn read(&self, engine: &Engine, ids: BTreeSet<String>) -> BTreeMap<String, Result<Labels, String>> {
        let mut known = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut read = BTreeMap::new();
        let mut refused: Option<String> = None;
        for id in ids {
            let labels = match (known.remove(&id), &refused) {
                (Some(labels), _) => Ok(labels),
                (None, Some(error)) => Err(error.clone()),
                (None, None) if id.is_empty() => Err("the engine does not name its image".to_owned()),
                (None, None) => {
                    let inspected = engine.inspect_image(&id).await;
                    inspected.map(labels_of).map_err(|error| {
                        let text = one_line(&error_chain(&error));
                        // A filter that refuses one image refuses all of them.
                        refused = Some(text.clone()).filter(|_| matches!(error, Error::Refused { .. }));
                        text
                    })
                }
            };
            read.insert(id, labels);
        }
        let readable = read.iter().filter_map(|(id, labels)| Some((id.clone(), labels.clone().ok()?)));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = readable.collect();
        read
    }
}

/// Returns the labels that the containers of `image` are made with.
fn labels_of(image: ImageInspect) -> Labels {
    let labels = image.config.and_then(|config| config.labels).unwrap_or_default();
    labels.into_iter().map(|(name, value)| (name, Some(value))).collect()
}

/// Returns whether `service` is `named`, or, in a Swarm stack, `STACK_named`.
fn names(service: &str, named: &str) -> bool {
    service.strip_suffix(named).is_some_and(|rest| rest.is_empty() || rest.ends_with('_'))
}

fn label<'a>(container: &'a ContainerSummary, name: &str) -> Option<&'a str> {
    container.labels.as_ref()?.get(name)?.as_deref()
}

fn projects_of(container: &ContainerSummary) -> impl Iterator<Item = &str> {
    [labels::PROJECT, labels::STACK].into_iter().filter_map(|name| label(container, name))
}

/// Removes from `container` the labels that `of_image` has with the same value.
fn strip(container: &mut ContainerSummary, of_image: &Labels) -> Origin {
    let Some(own) = &mut container.labels else { return Origin::Compared };
    let agent = own.get(labels::AGENT).cloned().flatten();
    own.retain(|name, value| of_image.get(name) != Some(value));
    match agent {
        Some(agent) if !own.contains_key(labels::AGENT) => Origin::OfImage(agent),
        _ => Origin::Compared,
    }
}
