//! The event: whoever waits goes on once it is set, even by one that dies of it.

use loom::thread;

use super::super::event::SharedEvent;
use super::super::system;
use super::explore;

fn made() -> SharedEvent {
    let event = SharedEvent::create().unwrap();
    // Makes the word, before a thread can be early.
    assert!(!event.is_set());
    event
}

fn waiting(event: &SharedEvent, tid: u32) -> thread::JoinHandle<()> {
    let event = event.clone();
    thread::spawn(move || {
        system::run(tid, None, || assert!(event.wait(None)));
    })
}

#[test]
fn loom_event_wakes_all() {
    explore(3, || {
        let event = made();
        let all = [1, 2].map(|tid| waiting(&event, tid));
        system::run(3, None, || event.set());
        for one in all {
            one.join().unwrap();
        }
    });
}

#[test]
fn loom_event_can_be_set_again() {
    explore(3, || {
        let event = made();
        let one = waiting(&event, 1);
        system::run(2, None, || {
            event.set();
            event.clear();
            event.set();
        });
        one.join().unwrap();
    });
}

#[test]
fn loom_event_outlives_its_setter() {
    for kill_at in 0..2 {
        explore(3, move || {
            let event = made();
            let one = waiting(&event, 1);
            if system::run(2, Some(kill_at), || event.set()).is_none() {
                system::seconds_pass();
            }
            one.join().unwrap();
        });
    }
}
