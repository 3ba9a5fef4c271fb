//! Strictly in turn: tickets are consecutive over all processors, and so are the slots. By weight, where the layout has a
//! backend more than once.

/// Returns the place within `len` slots for a connection that drew `ticket`.
#[inline(always)]
pub(super) const fn place(ticket: u64, len: u32) -> u32 {
    if len == 0 { 0 } else { (ticket % len as u64) as u32 }
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn tickets_in_a_row_visit_every_slot_in_turn() {
        for len in 1..=17_u32 {
            for ticket in 0..100_u64 {
                assert_eq!(place(ticket + 1, len), (place(ticket, len) + 1) % len);
            }
        }
    }
}
