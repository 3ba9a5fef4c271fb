//! What holds of every rollout where nothing else goes wrong: it costs no capacity, it ends, and one that fails leaves what was.

use super::*;

/// A world that is at peace, and its containers of before, all of them outdated.
fn at_peace(seed: u64, count: u32) -> (World, BTreeSet<ContainerId>) {
    let mut world = World::new(seed, Settings::new(any_law(seed, count, count)), count);
    world.fault_one_in = 0;
    world.run(Timestamp::ZERO + Duration::from_secs(60));
    let before: BTreeSet<ContainerId> = world.containers.keys().cloned().collect();
    assert_eq!(before.len(), count as usize);
    assert_eq!(world.published.ready.len(), count as usize);
    world.least_ready = count as usize;
    world.change_image();
    (world, before)
}

/// One with a reserve, of today's image; where nobody comes, one is left in the slots, and sleeps.
fn with_reserve(seed: u64, count: u32, warm: u32) -> (World, BTreeSet<ContainerId>) {
    let min = if seed.is_multiple_of(3) { 0 } else { count };
    let mut world = World::new(seed, Settings { warm, ..Settings::new(any_law(seed, min, count.max(1))) }, count);
    world.fault_one_in = 0;
    world.run(Timestamp::ZERO + Duration::from_secs(120));
    let before: BTreeSet<ContainerId> = world.containers.keys().cloned().collect();
    let ready = min.max(1) as usize;
    assert_eq!((world.published.ready.len(), before.len()), (ready, ready + warm as usize));
    assert_eq!(world.frozen().len(), if min == 0 { before.len() } else { warm as usize });
    world.least_ready = ready;
    (world, before)
}

fn rollout(world: &World) -> Option<RolloutReport> {
    world.controller.snapshot(world.now).rollout
}

impl World {
    /// The agent is killed, and another one takes over what it has told of itself, and what the kernel holds.
    fn succeed(&mut self, on_change: OnChange) {
        let former = self.controller.snapshot(self.now);
        let addresses = |id: &ContainerId| {
            let address = self.addresses[id].expect("it has an address");
            let heard = address.only(|family| !self.published.deaf.contains(&(id.clone(), family)));
            (id.clone(), heard.expect("it is served in a family"))
        };
        let settings = Settings {
            warm: self.warm,
            on_change,
            adopted_ready: self.published.ready.iter().map(addresses).collect(),
            adopted_flows: self.published.draining.iter().cloned().collect(),
            adopted_generation: self.published.generation,
            adopted_orders: former.orders,
            adopted_desired: Some(former.desired),
            adopted_cooldowns: Some(former.cooldowns),
            adopted_rollout: former.rollout,
            ..Settings::new(self.scaling)
        };
        self.controller = Controller::new(settings);
        self.coming.clear();
        self.pending.clear();
        self.plan(200, Event::Resynced(self.listed()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_rollout_costs_no_capacity_and_ends(seed: u64, count in 1..9_u32, parallel in 0..5_u32) {
        let (mut world, before) = at_peace(seed, count);

        world.tell(Event::Ordered(Order::Rollout { parallel }));
        world.run(world.now + Duration::from_secs(u64::from(count) * 10 + 60));

        prop_assert_eq!(rollout(&world), None);
        prop_assert_eq!(world.containers.len(), count as usize);
        prop_assert!(world.containers.keys().all(|id| !before.contains(id)), "all of them are replaced");
        prop_assert_eq!(world.controller.snapshot(world.now).problems, Vec::<String>::new());
    }

    #[test]
    fn agents_that_are_killed_meanwhile_cost_neither_capacity_nor_the_rollout(
        seed: u64, count in 1..9_u32, parallel in 1..4_u32,
        lives in prop::collection::vec(prop_oneof![0..300_u64, 0..6_000_u64], 1..4),
    ) {
        let (mut world, before) = at_peace(seed, count);
        let started = world.created;

        world.tell(Event::Ordered(Order::Rollout { parallel }));
        for life in lives {
            let was_under_way = rollout(&world).is_some();
            world.succeed(OnChange::Keep);
            world.run(world.now + Duration::from_millis(life));
            let told = world.controller.snapshot(world.now).rollout;
            prop_assert!(told.is_none_or(|told| was_under_way && told.of <= count), "{:?}", told);
        }
        world.run(world.now + Duration::from_secs(u64::from(count) * 10 + 60));

        prop_assert_eq!(rollout(&world), None);
        prop_assert!(world.containers.keys().all(|id| !before.contains(id)), "all of them are replaced");
        prop_assert_eq!(world.containers.len(), count as usize);
        prop_assert_eq!(world.controller.snapshot(world.now).problems, Vec::<String>::new());
        prop_assert_eq!(world.created - started, u64::from(count), "each by one");
    }

    #[test]
    fn a_rollout_that_fails_leaves_what_was(seed: u64, count in 1..9_u32, parallel in 0..5_u32) {
        let (mut world, before) = at_peace(seed, count);
        world.image_is_bad = true;

        world.tell(Event::Ordered(Order::Rollout { parallel }));
        world.run(world.now + Duration::from_secs(300));

        prop_assert_eq!(rollout(&world), None);
        prop_assert_eq!(world.containers.keys().cloned().collect::<BTreeSet<_>>(), before.clone());
        prop_assert_eq!(world.published.ready.iter().cloned().collect::<BTreeSet<_>>(), before);
        let problems = world.controller.snapshot(world.now).problems;
        prop_assert!(problems.iter().any(|problem| problem.starts_with("rollout aborted: ")), "{:?}", problems);
    }

    #[test]
    fn with_a_reserve_it_ends_as_well_and_nobody_of_before_is_kept(
        seed: u64, count in 1..6_u32, warm in 0..4_u32, parallel in 1..4_u32, by_hand: bool, comes in 0..30_u64,
    ) {
        let warm = warm.min(count);
        let (mut world, before) = with_reserve(seed, count, warm);
        let started = world.created;
        world.change_image();
        if by_hand {
            world.tell(Event::Ordered(Order::Count { count, lasting: None, reach: Reach::Bounds }));
        }

        world.tell(Event::Ordered(Order::Rollout { parallel }));
        world.run(world.now + Duration::from_secs(comes));
        if let Some(id) = world.published.ready.first().cloned() {
            world.tell(Event::Woken { id });
        }
        world.run(world.now + Duration::from_secs(u64::from(count + warm) * 10 + 120));

        prop_assert_eq!(rollout(&world), None);
        let report = world.controller.snapshot(world.now);
        let wanted = (report.desired.max(1) + warm) as usize;
        prop_assert!(world.containers.keys().all(|id| !before.contains(id)), "all of them are replaced");
        prop_assert_eq!((world.containers.len(), report.backends.len()), (wanted, wanted), "{:?}", report.backends);
        prop_assert_eq!(world.frozen().len(), warm as usize + usize::from(report.desired == 0));
        prop_assert_eq!(report.problems, Vec::<String>::new());
        // The reserve is replaced at once, each of the others by one; the reserve that serves for that is filled up again.
        let most = 2 * u64::from(count + warm) + u64::from(parallel);
        prop_assert!(world.created - started <= most, "{} were started", world.created - started);
    }

    #[test]
    fn one_that_fails_with_a_reserve_leaves_who_serves(
        seed: u64, count in 1..6_u32, warm in 0..4_u32, parallel in 1..4_u32,
    ) {
        let (mut world, before) = with_reserve(seed, count, warm.min(count));
        let serving: BTreeSet<ContainerId> = world.published.ready.iter().cloned().collect();
        world.image_is_bad = true;
        world.change_image();

        world.tell(Event::Ordered(Order::Rollout { parallel }));
        world.run(world.now + Duration::from_secs(300));

        prop_assert_eq!(rollout(&world), None);
        prop_assert!(serving.is_subset(&before));
        prop_assert_eq!(world.published.ready.iter().cloned().collect::<BTreeSet<_>>(), serving);
        prop_assert!(world.controller.snapshot(world.now).problems.iter().any(|it| it.starts_with("rollout aborted: ")));
    }

    #[test]
    fn one_that_is_aborted_half_way_has_as_many_as_are_wanted(seed: u64, count in 1..9_u32, seconds in 0..20_u64) {
        let (mut world, _) = at_peace(seed, count);

        world.tell(Event::Ordered(Order::Rollout { parallel: 1 }));
        world.run(world.now + Duration::from_secs(seconds));
        world.tell(Event::Ordered(Order::AbortRollout));
        world.run(world.now + Duration::from_secs(100));

        prop_assert_eq!(rollout(&world), None);
        prop_assert_eq!(world.published.ready.len(), count as usize);
        prop_assert_eq!(world.containers.len(), count as usize);
    }
}
