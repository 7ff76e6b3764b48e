//! Cores that outlive the configuration that they were made for.

use crate::config::PolicyError;

/// The old core with its new configuration, or a new one; none for a section that is not written.
pub(super) fn keep<T, C: Clone>(
    section: Option<&T>,
    old: Option<&C>,
    new: impl FnOnce(&T) -> Result<C, PolicyError>,
    change: impl FnOnce(&C, &T) -> Result<(), PolicyError>,
) -> Result<Option<C>, PolicyError> {
    match (section, old) {
        (None, _) => Ok(None),
        (Some(config), Some(core)) => change(core, config).map(|()| Some(core.clone())),
        (Some(config), None) => new(config).map(Some),
    }
}
