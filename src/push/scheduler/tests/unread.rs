//! New mail comes with how many messages were unread before it.

use super::*;

#[test]
fn a_push_of_several_new_mails_says_how_few_were_unread_before_one_of_them() {
    let new_mail = |sim: &mut Simulation, unread_before| {
        sim.unread_before = unread_before;
        sim.mail("INBOX", sim.id + 7);
    };
    for (counts, expected) in [
        ([Some(5), Some(6)], ", 5 before"),
        // All were read before the second came.
        ([Some(5), Some(0)], ", 0 before"),
        ([None, Some(1)], ""),
        ([Some(5), None], ""),
    ] {
        // Both come before the subscriptions are read.
        let mut sim = Simulation::with([phone("a")]);
        for count in counts {
            new_mail(&mut sim, count);
        }
        assert_eq!(sim.pushes_until(0.0), [format!("0 push a INBOX{expected}")], "{counts:?}");

        // Both wait for the time between two pushes.
        let mut sim = Simulation::with([phone("a")]);
        sim.mail("INBOX", 3);
        assert_eq!(sim.pushes_until(1.0), ["0 push a INBOX"]);
        for count in counts {
            new_mail(&mut sim, count);
            assert!(sim.pushes_until(2.0).is_empty());
        }
        assert_eq!(sim.pushes_until(9.0), [format!("5 push a INBOX{expected}")], "{counts:?}");
    }

    // A quiet change has no count, and takes none away.
    let mut sim = Simulation::with([phone("a")]);
    sim.quiet("INBOX", 3);
    assert!(sim.until(1.0).is_empty());
    new_mail(&mut sim, Some(5));
    sim.unread_before = Some(9);
    sim.quiet("INBOX", 9);
    assert_eq!(sim.pushes_until(1.0), ["1 push a INBOX, 5 before"]);
}
