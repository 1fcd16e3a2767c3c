//! Handles in messages: ends of pipes, shared values and locks, anywhere inside.

use std::time::Duration;

use bunshin::{
    Array, Connection, ErrorKind, Lock, Receiver, RecvError, SendError, Sender, StartMethod,
    TryRecvError, TrySendError, Value, channel, pipe, wait,
};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};

use crate::support::under_each_start_method;
use crate::{LONG, guard, start};

#[test]
fn ends_travel_inside_messages_inside_ends() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        // The child gets a receiver of senders of receivers of words.
        let (outer, outer_there) = channel::<Sender<Receiver<String>>>().unwrap();
        let say = |outer: Receiver<Sender<Receiver<String>>>| {
            let middle = outer.recv().unwrap();
            let (words, inner) = channel().unwrap();
            words.send("before".to_owned()).unwrap();
            middle.send(inner).unwrap();
            words.send("after".to_owned()).unwrap();
        };
        let child = start(method, say, (outer_there,));
        let (middle, middle_here) = channel().unwrap();
        outer.send(middle).unwrap();
        let inner: Receiver<String> = middle_here.recv().unwrap();
        assert_eq!(inner.recv().unwrap(), "before");
        assert_eq!(inner.recv().unwrap(), "after");
        assert!(matches!(inner.recv(), Err(RecvError::Disconnected)));
        assert!(matches!(middle_here.recv(), Err(RecvError::Disconnected)));
        assert!(child.join().unwrap().success());
    });
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tools {
    Kit {
        lock: Lock,
        #[serde(flatten)]
        data: Data,
        answer: Option<Sender<i64>>,
    },
}

#[derive(Serialize, Deserialize)]
struct Data {
    total: Value<i64>,
    lists: Vec<Array<i64>>,
}

#[test]
fn shared_data_travels_inside_the_users_own_types() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let (sender, receiver) = channel::<(u8, Vec<Tools>)>().unwrap();
        let work = |receiver: Receiver<(u8, Vec<Tools>)>| {
            let (_, kits) = receiver.recv().unwrap();
            for Tools::Kit { lock, data, answer } in kits {
                let _held = lock.lock().unwrap();
                for list in &data.lists {
                    *data.total.lock().unwrap() += list.to_vec().unwrap().iter().sum::<i64>();
                    list.lock()
                        .unwrap()
                        .iter_mut()
                        .for_each(|number| *number = -*number);
                }
                let answer = answer.expect("there is one");
                answer.send(data.total.get().unwrap()).unwrap();
            }
        };
        let child = start(method, work, (receiver,));
        let (answer, answers) = channel().unwrap();
        let total = Value::new(100i64).unwrap();
        let lists = [
            Array::from_slice(&[1, 2]).unwrap(),
            Array::from_slice(&[3]).unwrap(),
        ];
        let data = Data {
            total: total.clone(),
            lists: lists.to_vec(),
        };
        let kit = Tools::Kit {
            lock: Lock::new().unwrap(),
            data,
            answer: Some(answer),
        };
        sender.send((1, vec![kit])).unwrap();
        assert_eq!(answers.recv().unwrap(), 106);
        assert!(child.join().unwrap().success());
        assert_eq!(total.get().unwrap(), 106);
        assert_eq!(lists[0].to_vec().unwrap(), [-1, -2]);
        assert_eq!(lists[1].to_vec().unwrap(), [-3]);
    });
}

#[test]
fn hundreds_of_handles_go_in_one_message() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let work = |receiver: Receiver<Vec<Value<u32>>>, more: Vec<Value<u32>>| {
            let values = receiver.recv().unwrap();
            values
                .iter()
                .chain(&more)
                .for_each(|value| *value.lock().unwrap() *= 2);
            values
        };
        let values = |range: std::ops::Range<u32>| -> Vec<Value<u32>> {
            range.map(|number| Value::new(number).unwrap()).collect()
        };
        let (sender, receiver) = channel().unwrap();
        let (sent, given) = (values(0..450), values(450..900));
        let child = start(method, work, (receiver, given.clone()));
        sender.send(sent.clone()).unwrap();
        let back = child.result().unwrap();
        for (number, value) in (0..).zip(sent.iter().chain(&given)) {
            assert_eq!(value.get().unwrap(), number * 2, "{method}");
        }
        assert_eq!(back.len(), 450);
        for (back, sent) in back.iter().zip(&sent) {
            back.set(7).unwrap();
            assert_eq!(sent.get().unwrap(), 7);
        }
    });
}

/// An end, and after it something that may refuse to be encoded.
#[derive(Serialize, Deserialize)]
struct Attached {
    number: u32,
    end: Sender<u32>,
    more: Refusing,
}

#[derive(Deserialize)]
struct Refusing(u8);

impl Serialize for Refusing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            0 => serializer.serialize_u8(0),
            1 => Err(S::Error::custom("refused after the handle")),
            _ => panic!("panicked after the handle"),
        }
    }
}

#[test]
fn handles_of_a_failed_message_do_not_leak_into_the_next() {
    let _guard = guard(60);
    let (sender, receiver) = channel::<Attached>().unwrap();
    let mut wrong = Vec::new();
    for round in 0..20 {
        let (bad, bad_there) = channel::<u32>().unwrap();
        let (good, good_there) = channel::<u32>().unwrap();
        let refusing = Attached {
            number: 1,
            end: bad,
            more: Refusing(1 + round % 2),
        };
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            sender.send(refusing).map_err(Box::new)
        }));
        if let Ok(outcome) = caught {
            let failed = *outcome.expect_err("it cannot be encoded");
            let SendError::Failed(back, error) = failed else {
                panic!("{failed}")
            };
            assert_eq!(error.kind(), ErrorKind::Encode);
            // What came back works as before.
            back.end.send(5).unwrap();
            assert_eq!(bad_there.recv().unwrap(), 5);
        }
        // All of its ends are gone, wherever it got to.
        wrong.push(
            bad_there
                .recv_timeout(LONG)
                .map_err(|error| error.to_string()),
        );
        sender
            .send(Attached {
                number: 2,
                end: good,
                more: Refusing(0),
            })
            .unwrap();
        let got = receiver.recv().unwrap();
        got.end.send(got.number).unwrap();
        assert_eq!(good_there.recv().unwrap(), 2);
    }
    assert!(
        wrong
            .iter()
            .all(|end| end.as_ref().is_err_and(|e| e.contains("gone"))),
        "{wrong:?}"
    );
}

#[test]
fn an_end_cannot_become_one_of_another_type() {
    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Sent<T>(T);

    let _guard = guard(60);
    // What is inside has another type on each side; the message itself the same.
    let (carrier, carried) = channel::<serde_json::Value>().unwrap();
    let (end, _keep) = pipe::<u32>().unwrap();
    // A handle makes no sense outside of a message.
    let error = serde_json::to_string(&Sent(&end)).expect_err("it is no message");
    assert!(error.to_string().contains("inside a message"), "{error}");
    assert!(serde_json::from_str::<Connection<u32>>("{}").is_err());
    // Nor does one that was made up.
    carrier
        .send(serde_json::json!({"tag": 1, "side": 0, "memory": 0, "socket": 1}))
        .unwrap();
    assert!(carried.recv().is_ok());

    let child = bunshin::Process::builder()
        .start(|end: Disguised| drop(end), (Disguised::Numbers(Sent(end)),));
    match child.unwrap().result() {
        Err(bunshin::TaskError::Arguments(error)) => {
            assert!(error.to_string().contains("another type"), "{error}");
        }
        other => panic!("{other:?}"),
    }

    /// Encodes as a connection of numbers, and decodes as one of words.
    enum Disguised {
        Numbers(Sent<Connection<u32>>),
        Words(#[expect(dead_code, reason = "it is never got")] Connection<String>),
    }

    impl Serialize for Disguised {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self {
                Self::Numbers(numbers) => numbers.serialize(serializer),
                Self::Words(_) => Err(S::Error::custom("words are not sent")),
            }
        }
    }

    impl<'de> Deserialize<'de> for Disguised {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Connection::deserialize(deserializer).map(Self::Words)
        }
    }
}

#[test]
fn a_receiver_that_could_not_be_sent_still_has_the_handles_it_knows_of() {
    let _guard = guard(60);
    let (ends, receiver) = channel::<Sender<u32>>().unwrap();
    let mut heard = Vec::new();
    for _ in 0..3 {
        let (sender, here) = channel().unwrap();
        ends.send(sender).unwrap();
        heard.push(here);
    }
    // Looks at what has come, without taking any message.
    assert_eq!(wait(&[&receiver], Some(LONG)).unwrap(), [0]);
    let (carrier, gone) = channel::<Receiver<Sender<u32>>>().unwrap();
    drop(gone);
    let Err(SendError::Disconnected(receiver)) = carrier.send(receiver) else {
        panic!("nobody is there to receive it");
    };
    for (number, here) in (0..).zip(&heard) {
        receiver.recv().unwrap().send(number).unwrap();
        assert_eq!(here.recv().unwrap(), number);
    }
}

#[test]
fn a_full_pipe_refuses_messages_with_many_handles_whole() {
    let _guard = guard(90);
    // The socket takes an odd or an even number of lots of handles before it is full.
    for first in [0, 1, 250] {
        let child = start(StartMethod::Forkserver, fill, (first,));
        let Some(status) = child.join_timeout(LONG).unwrap() else {
            child.kill().unwrap();
            panic!("after {first} handles, sending without waiting hangs");
        };
        assert!(
            status.success(),
            "after {first} handles: {:?}",
            child.result()
        );
    }
}

/// Fills a pipe with messages that have many handles, and empties it.
fn fill(first: usize) {
    let (sender, receiver) = channel::<(usize, Vec<Lock>)>().unwrap();
    let lock = Lock::new().unwrap();
    sender.send((first, vec![lock.clone(); first])).unwrap();
    let mut sent = 0;
    loop {
        match sender.try_send((201, vec![lock.clone(); 201])) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full((201, locks))) => break assert_eq!(locks.len(), 201),
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 10_000, "the pipe is never full");
    }
    let timeout = Duration::from_millis(20);
    let error = sender
        .send_timeout((1, vec![lock.clone(); 201]), timeout)
        .unwrap_err();
    assert!(matches!(error, TrySendError::Full(_)), "{error}");
    for number in 0..=sent {
        if number + 10 == sent {
            // Looks at all that lies in the socket, also what belongs to no message.
            assert_eq!(wait(&[&receiver], Some(LONG)).unwrap(), [0]);
        }
        let (count, locks) = receiver.recv().unwrap();
        assert_eq!(count, if number == 0 { first } else { 201 });
        assert_eq!(locks.len(), count);
        assert!(locks.iter().all(|lock| lock.try_lock().is_ok()));
    }
    sender.send((2, vec![lock.clone(); 2])).unwrap();
    assert_eq!(receiver.recv().unwrap().1.len(), 2);
    assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
}

#[test]
fn ends_dropped_here_leave_those_of_the_child_alone() {
    let _guard = guard(60);
    under_each_start_method(|method| {
        let (out, out_there) = pipe::<u32>().unwrap();
        let (unused, unused_there) = pipe::<u32>().unwrap();
        let add = |there: Connection<u32>, unused: Connection<u32>| {
            while let Ok(number) = there.recv() {
                there.send(number + 1).unwrap();
            }
            assert!(matches!(unused.recv(), Err(RecvError::Disconnected)));
        };
        let child = start(method, add, (out_there, unused_there));
        drop(unused);
        let (sender, receiver) = out.split();
        for number in 0..100 {
            sender.send(number).unwrap();
            assert_eq!(receiver.recv().unwrap(), number + 1);
        }
        drop(sender);
        assert!(
            matches!(receiver.recv(), Err(RecvError::Disconnected)),
            "{method}"
        );
        child.result().unwrap();
    });
}
