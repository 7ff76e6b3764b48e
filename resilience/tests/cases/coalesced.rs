//! Coalescing through its core, for the driver that has no runtime.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::Instant,
};

use http::StatusCode;
use selvedge_resilience::{
    FailureClass, Outcome, Policy, Reason, Rejected,
    coalesce::{CoalesceConfig, Coalescer, Joined, KeyRules, Lead, OnError, Turn},
};

use super::{
    cores::{Call, Cores, State, header_map, method},
    table::{Answer, Fault, Want},
};

/// What followers are told: the status and what the body says, or why there is none.
pub(super) type Told = Result<(u16, String), Rejected>;

pub(super) struct Coalesce {
    pub(super) core: Coalescer<Told>,
    rules: KeyRules,
    config: CoalesceConfig,
}

impl Coalesce {
    /// The calls under way stay.
    pub(super) fn new(config: &CoalesceConfig, old: Option<&Self>) -> Self {
        let core = match old {
            Some(old) => old.core.clone(),
            None => Coalescer::new(config.keys),
        };
        core.reconfigure(config.keys);
        Self {
            core,
            rules: KeyRules::new(config).expect("valid"),
            config: config.clone(),
        }
    }
}

/// The lead of a call, under the rules that were in force when it began.
pub(super) struct Led {
    lead: Lead<Told>,
    under: Rc<Coalesce>,
}

fn failed() -> Rejected {
    Rejected::new(Policy::Coalesce, Reason::LeaderFailed)
}

impl Led {
    pub(super) fn fail(self, why: Rejected) {
        // A deadline is its caller's own; the others may have more time.
        if self.under.config.errors == OnError::Share && why.policy != Policy::Deadline {
            self.lead.share(Err(why));
        }
    }

    fn panic(self) {
        let unwound = catch_unwind(AssertUnwindSafe(move || {
            let _lead = self.lead;
            panic!("as the table says");
        }));
        assert!(unwound.is_err());
    }
}

/// An answer that is for everybody as soon as it is whole.
pub(super) struct Gathering {
    told: (u16, String),
    outcome: Outcome,
    /// From then on it is its leader's alone.
    pub(super) until: Instant,
}

impl Call<'_> {
    /// Waits for the call that another makes, or makes it.
    pub(super) fn join(&mut self, cores: &Cores, now: Instant) {
        let Some(coalesce) = &cores.coalesce else {
            return self.make(cores, now);
        };
        let path = self.step.path.as_deref().unwrap_or("/");
        let uri = format!("http://callee{path}").parse().expect("a path");
        let headers = header_map(&self.step.headers);
        let key = coalesce.rules.key(&method(self.step), &uri, &headers);
        match key.filter(|_| self.step.sends.is_none()) {
            None => self.make(cores, now),
            Some(key) => match coalesce.core.join(key) {
                Joined::Follow(follow) => {
                    self.state = State::Follows(follow, Rc::clone(coalesce));
                }
                Joined::Alone => self.make(cores, now),
                Joined::Lead(lead) => self.leads(lead, coalesce, cores, now),
            },
        }
    }

    fn leads(&mut self, lead: Lead<Told>, under: &Rc<Coalesce>, cores: &Cores, now: Instant) {
        let under = Rc::clone(under);
        self.lead = Some(Led { lead, under });
        self.make(cores, now);
    }

    /// The wait for another call is over.
    pub(super) fn turn(
        &mut self,
        turn: Turn<Told>,
        under: &Rc<Coalesce>,
        cores: &Cores,
        now: Instant,
    ) {
        match turn {
            Turn::Answer(Ok((status, text))) => {
                self.seen.head = Some((Want::Status(status), now - self.began));
                self.seen.text = text;
                self.end(Outcome::Success, now, None);
            }
            Turn::Answer(Err(rejected)) => self.refuse(&rejected, now),
            Turn::Broken => self.refuse(&failed(), now),
            Turn::Lead(lead) => self.leads(lead, under, cores, now),
            Turn::Alone => self.make(cores, now),
        }
    }

    /// The call has no answer; `refused`: because a policy said so.
    pub(super) fn failed_for_all(&mut self, answer: &Answer, refused: Option<&Rejected>) {
        match (self.lead.take(), refused, answer.fault) {
            (None, ..) => {}
            (Some(led), Some(rejected), _) => led.fail(*rejected),
            (Some(led), None, Some(Fault::Panic)) => led.panic(),
            (Some(led), None, _) => led.fail(failed()),
        }
    }

    /// Gives the answer to everybody for whom it is. True: the leader waits until it is whole.
    pub(super) fn for_all(&mut self, answer: &Answer, outcome: Outcome, now: Instant) -> bool {
        let Some(led) = self.lead.take() else {
            return false;
        };
        let Coalesce { rules, config, .. } = &*led.under;
        let status = StatusCode::from_u16(answer.status.expect("an answer")).expect("a status");
        if config.errors == OnError::Retry && status.is_server_error() {
            return false;
        }
        let may = rules.may_share(status, &header_map(&answer.headers));
        let fits = answer.text.len() <= config.body.as_usize();
        let told = (status.as_u16(), answer.text.clone());
        if !may || !(fits || answer.held) {
            led.lead.release();
        } else if answer.held {
            self.seen.head = None;
            self.state = State::Gathers(Gathering {
                told,
                outcome,
                until: now + config.gather.0,
            });
            self.lead = Some(led);
            return true;
        } else {
            led.lead.share(Ok(told));
        }
        false
    }

    /// The body has ended in time.
    pub(super) fn gathered(&mut self, gathering: Gathering, now: Instant) {
        let led = self.lead.take().expect("who gathers leads");
        self.seen.head = Some((Want::Status(gathering.told.0), now - self.began));
        led.lead.share(Ok(gathering.told));
        self.end(gathering.outcome, now, None);
    }

    /// It has not, or the leader's time is up.
    pub(super) fn not_gathered(&mut self, gathering: Gathering, now: Instant) {
        let led = self.lead.take().expect("who gathers leads");
        self.seen.head = Some((Want::Status(gathering.told.0), now - self.began));
        if gathering.until <= now {
            led.lead.release();
            self.state = State::Open(gathering.outcome);
        } else {
            led.fail(failed());
            self.seen.broke = Some("deadline".to_owned());
            self.end(Outcome::Failure(FailureClass::Timeout), now, None);
        }
    }
}
