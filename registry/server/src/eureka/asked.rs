//! Writes in Eureka's dialect, held to what v1's are held to: one limit and one audit log, whatever
//! language a client speaks.

use super::{
    Eureka,
    model::Instance,
    names,
    ops::{Done, Named, Via},
};
use crate::{audit::Who, limits::has_quota};

/// Who asks for a write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) who: &'a Who,
    pub(super) via: Via,
}

impl Asker<'_> {
    /// POST `/apps/{app}`, if this client's services may have one instance more.
    pub(super) fn register(self, eureka: &Eureka, app: &str, instance: &Instance) -> Done {
        let (service, id) = (names::service(&instance.app), names::instance(&instance.id));
        let catalogue = eureka.shared.catalogue();
        let quota = has_quota(&self.who.caller, &catalogue, (&service, &id));
        let done = match quota {
            Ok(()) => eureka.register(app, instance, self.via),
            Err(refused) => refused.into(),
        };
        let subject = format!("{service}/{id}");
        self.who.wrote("register", &subject, done.status().as_u16());
        done
    }

    /// Writes down what became of another write.
    pub(super) fn audited(self, action: &'static str, named: &Named, done: Done) -> Done {
        let subject = format!("{}/{}", named.service, named.id);
        self.who.wrote(action, &subject, done.status().as_u16());
        done
    }
}
