//! Strictly in turn: tickets are consecutive over all processors, and so are the slots.

#[inline(always)]
pub(super) const fn pick(ticket: u64, len: u32) -> Option<u32> {
    if len == 0 { None } else { Some((ticket % len as u64) as u32) }
}

#[cfg(test)]
mod tests {
    use super::pick;

    #[test]
    fn tickets_in_a_row_visit_every_slot_in_turn() {
        for len in 1..=17_u32 {
            for ticket in 0..100_u64 {
                let this = pick(ticket, len).unwrap();
                let next = pick(ticket + 1, len).unwrap();

                assert_eq!(next, (this + 1) % len);
            }
        }
    }

    #[test]
    fn no_slots_give_nothing() {
        assert_eq!(pick(5, 0), None);
    }
}
