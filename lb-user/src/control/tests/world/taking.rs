//! Containers that others start, in any order of events: none is ever started or stopped here, and once it is quiet those that
//! run, and can be served, are served, as far as there is room.

use super::*;

/// A container that somebody else runs.
#[derive(Clone, Copy, Debug, Default)]
struct Theirs {
    runs: bool,
    paused: bool,
    is_unfit: bool,
    ending: bool,
}

struct Taking {
    controller: Controller,
    now: Timestamp,
    theirs: [Theirs; 6],
    published: Vec<ContainerId>,
}

impl Taking {
    fn new(most: u32) -> Self {
        let settings = Settings { most: Some(most), ..Settings::new(Scaling::Fixed) };
        let (controller, published) = (Controller::new(settings), Vec::new());
        let mut taking = Self { controller, now: Timestamp::ZERO, theirs: Default::default(), published };
        taking.tell(Event::Resynced(Vec::new()));
        taking
    }

    fn sighting(&self, place: usize) -> Sighting {
        let of = self.theirs[place];
        let terms = Terms { unfit: (of.is_unfit && of.runs).then(|| "a test".into()), ..Terms::default() };
        Sighting { running: of.runs, terms, ..sighting(&place.to_string(), place as u32 + 1) }
    }

    fn list(&mut self) {
        let there = (0..self.theirs.len()).map(|place| self.sighting(place)).collect();
        self.tell(Event::Resynced(there));
        for (place, _) in self.theirs.into_iter().enumerate().filter(|(_, of)| of.runs && of.paused) {
            self.tell(Event::BackendGone { id: id(&place.to_string()), cause: GoneCause::Paused });
        }
    }

    fn act(&mut self, place: usize, action: u8) {
        let (name, of) = (id(&place.to_string()), self.theirs[place]);
        match action {
            0 | 1 if !of.runs => {
                self.theirs[place] = Theirs { runs: true, is_unfit: action == 1, ..Theirs::default() };
                self.tell(Event::BackendSeen(self.sighting(place)));
            }
            2 if of.runs => {
                self.theirs[place] = Theirs::default();
                self.tell(Event::BackendGone { id: name, cause: GoneCause::Killed });
            }
            3 if of.runs && !of.ending => {
                self.theirs[place].ending = true;
                self.tell(Event::BackendGone { id: name, cause: GoneCause::Ending });
            }
            4 if of.runs && !of.paused => {
                self.theirs[place].paused = true;
                self.tell(Event::BackendGone { id: name, cause: GoneCause::Paused });
            }
            5 if of.runs && of.paused => {
                self.theirs[place].paused = false;
                self.tell(Event::BackendSeen(self.sighting(place)));
            }
            6 => self.list(),
            7 => self.theirs[place].is_unfit ^= true,
            _ => self.pass(Duration::from_secs(1)),
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.controller.deadline().filter(|due| *due <= end) {
            self.now = due;
            self.tell(Event::Tick);
        }
        self.now = end;
        self.tell(Event::Swept { began: self.now, flows: BTreeMap::new(), answers: BTreeMap::new() });
    }

    fn tell(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for command in self.controller.handle(event, self.now) {
                match command {
                    Command::Publish(Publication { generation, ready, .. }) => {
                        let is_there = |id: &ContainerId| self.theirs[id.0.parse::<usize>().expect("a place")].runs;
                        assert!(ready.iter().all(is_there), "one that has ended has a slot");
                        self.published = ready;
                        events.push_back(Event::Published { generation });
                    }
                    Command::Probe { id } => {
                        let of = self.theirs[id.0.parse::<usize>().expect("a place")];
                        let outcome = match of.runs && !of.paused {
                            true => Ok([(Family::V4, Ok(()))].into()),
                            false => Err("no answer".to_owned()),
                        };
                        events.push_back(Event::BackendProbed { id, outcome });
                    }
                    Command::Finish => {}
                    other @ (Command::Start { .. }
                    | Command::Stop { .. }
                    | Command::Remove { .. }
                    | Command::Freeze { .. }
                    | Command::Thaw { .. }) => {
                        panic!("{other:?} of containers that others run")
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn those_that_run_and_can_be_served_are_served(most in 1..8_u32, actions in prop::collection::vec((0..6_usize, 0..9_u8), 1..80)) {
        let mut taking = Taking::new(most);
        for (place, action) in actions {
            taking.act(place, action);
        }
        // What was asked to end has ended, and nobody pauses any.
        for place in 0..taking.theirs.len() {
            if taking.theirs[place].ending {
                taking.act(place, 2);
            }
            taking.act(place, 5);
        }
        taking.list();
        taking.pass(Duration::from_secs(120));

        let fit = |place: &usize| taking.theirs[*place].runs && !taking.theirs[*place].is_unfit;
        let fit: BTreeSet<ContainerId> = (0..taking.theirs.len()).filter(fit).map(|place| id(&place.to_string())).collect();
        let served: BTreeSet<ContainerId> = taking.published.iter().cloned().collect();
        prop_assert!(served.is_subset(&fit), "{:?} of {:?}", served, fit);
        prop_assert_eq!(served.len(), fit.len().min(most as usize));

        taking.tell(Event::StopRequested);
        taking.pass(Duration::from_secs(60));
        prop_assert_eq!(&taking.published, &Vec::new());
    }
}
