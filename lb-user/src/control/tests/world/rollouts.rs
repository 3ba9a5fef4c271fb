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

fn rollout(world: &World) -> Option<RolloutReport> {
    world.controller.snapshot(world.now).rollout
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
