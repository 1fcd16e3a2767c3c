//! iceoryx2: publish and subscribe over shared memory, zero-copy.
//!
//! One service each way. "polling" asks its subscriber again and again; "event"
//! sleeps on a listener, which the sender notifies after each sample. Messages are
//! copied from the sender's buffer into a loaned sample, as every peer copies them,
//! and looked at where they lie. Samples wait, none are dropped: the service does not
//! overflow and the publisher retries.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::port::update_connections::UpdateConnections;
use iceoryx2::prelude::*;

use crate::measure::{Result, scratch_name};
use crate::workload::Work;
use crate::workload::link::{self, Bytes, Link, Message, Quote, TypedLink, Values};

type Service = ipc::Service;

// SAFETY: `Quote` is repr(C), holds plain numbers only, no pointers and no
// padding, and is the same type in both processes, which are one binary.
unsafe impl ZeroCopySend for Quote {}

/// Which of the two processes this end is in.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Near,
    Far,
}

/// The listener and notifier of the "event" form.
struct Events {
    listener: Listener<Service>,
    notifier: Notifier<Service>,
}

/// One end; `M` is `[u8]` or a message type.
struct End<M: ?Sized + std::fmt::Debug + IceoryxSend + 'static> {
    publisher: Publisher<Service, M, ()>,
    subscriber: Subscriber<Service, M, ()>,
    events: Option<Events>,
    // Last, as it must outlive what was made with it.
    _node: Node<Service>,
}

fn config() -> Result<Config> {
    // Everything is named after this measurement, so that the runner can clear
    // it away if the measurement is killed, and no other user is disturbed.
    let scratch = scratch_name();
    let mut config = Config::default();
    config.global.prefix = FileName::new(format!("{scratch}_").as_bytes())?;
    let root = std::env::temp_dir().join(&scratch);
    let root = root
        .to_str()
        .ok_or("a temporary folder that is not UTF-8")?;
    config.global.set_root_path(&Path::new(root.as_bytes())?);
    Ok(config)
}

fn node() -> Result<Node<Service>> {
    set_log_level(LogLevel::Error);
    Ok(NodeBuilder::new()
        .config(&config()?)
        .signal_handling_mode(SignalHandlingMode::Disabled)
        .create()?)
}

/// The names of what this side sends on and what it receives on.
fn names(side: Side) -> (&'static str, &'static str) {
    match side {
        Side::Near => ("there", "back"),
        Side::Far => ("back", "there"),
    }
}

impl Events {
    fn new(node: &Node<Service>, side: Side) -> Result<Events> {
        let (outgoing, incoming) = names(side);
        let service = |name: &str| -> Result<_> {
            Ok(node
                .service_builder(&name.try_into()?)
                .event()
                .open_or_create()?)
        };
        Ok(Events {
            listener: service(incoming)?.listener_builder().create()?,
            notifier: service(outgoing)?.notifier_builder().create()?,
        })
    }
}

/// Samples that may wait for the receiver: as many as a megabyte holds, within reason.
fn n_waiting(message_bytes: usize) -> usize {
    (1024 * 1024 / message_bytes.max(1)).clamp(2, 1024)
}

/// Makes a service for messages of one kind; the two kinds differ in type only.
macro_rules! service {
    ($node:expr, $name:expr, $message:ty, $message_bytes:expr) => {
        $node
            .service_builder(&$name.try_into()?)
            .publish_subscribe::<$message>()
            .enable_safe_overflow(false)
            .subscriber_max_buffer_size(n_waiting($message_bytes))
            .max_publishers(1)
            .max_subscribers(1)
            .open_or_create()?
    };
}

impl End<[u8]> {
    fn new(work: &Work, side: Side, events: bool) -> Result<End<[u8]>> {
        let node = node()?;
        let (outgoing, incoming) = names(side);
        let n_bytes = match side {
            Side::Near => work.size_bytes,
            Side::Far => work.reply_bytes(),
        };
        // Both directions of both sides ask for the same, or opening would fail.
        let waiting = work.size_bytes;
        Ok(End {
            publisher: service!(node, outgoing, [u8], waiting)
                .publisher_builder()
                .initial_max_slice_len(n_bytes)
                .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
                .create()?,
            subscriber: service!(node, incoming, [u8], waiting)
                .subscriber_builder()
                .create()?,
            events: events.then(|| Events::new(&node, side)).transpose()?,
            _node: node,
        })
    }
}

impl<M: std::fmt::Debug + ZeroCopySend + 'static> End<M> {
    fn typed(side: Side, events: bool) -> Result<End<M>> {
        let node = node()?;
        let (outgoing, incoming) = names(side);
        Ok(End {
            publisher: service!(node, outgoing, M, size_of::<M>())
                .publisher_builder()
                .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
                .create()?,
            subscriber: service!(node, incoming, M, size_of::<M>())
                .subscriber_builder()
                .create()?,
            events: events.then(|| Events::new(&node, side)).transpose()?,
            _node: node,
        })
    }
}

/// Asks until there is a sample; with events, sleeps between two questions.
/// The sender sends first and notifies then, so no sample is slept through.
fn until_some<T>(events: Option<&Events>, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    loop {
        if let Some(sample) = ask()? {
            return Ok(sample);
        }
        match events {
            Some(events) => {
                events.listener.blocking_wait(|_| {})?;
            }
            None => std::hint::spin_loop(),
        }
    }
}

fn notify(events: Option<&Events>) -> Result<()> {
    if let Some(events) = events {
        events.notifier.notify()?;
    }
    Ok(())
}

impl Link for End<[u8]> {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        let sample = self.publisher.loan_slice_uninit(message.len())?;
        sample.write_from_slice(message).send()?;
        notify(self.events.as_ref())
    }

    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let sample = until_some(self.events.as_ref(), || Ok(self.subscriber.receive()?))?;
        Ok(look(&sample))
    }
}

impl<M: Message + Copy + std::fmt::Debug + ZeroCopySend + 'static> TypedLink<M> for End<M> {
    fn send(&mut self, message: M) -> Result<()> {
        self.publisher
            .loan_uninit()?
            .write_payload(message)
            .send()?;
        notify(self.events.as_ref())
    }

    fn receive(&mut self) -> Result<M> {
        let sample = until_some(self.events.as_ref(), || Ok(self.subscriber.receive()?))?;
        Ok(*sample)
    }
}

/// Makes each side's end connect to the other's before any message is sent:
/// a sample sent before the subscriber has mapped the connection is lost.
fn connect<M>(end: End<M>, mut meeting: UnixStream) -> Result<End<M>>
where
    M: ?Sized + std::fmt::Debug + IceoryxSend + 'static,
    Publisher<Service, M, ()>: UpdateConnections,
    Subscriber<Service, M, ()>: UpdateConnections,
{
    let mut meet = || -> Result<()> {
        meeting.write_all(b"!")?;
        Ok(meeting.read_exact(&mut [0])?)
    };
    meet()?;
    end.publisher.update_connections()?;
    meet()?;
    end.subscriber.update_connections()?;
    meet()?;
    Ok(end)
}

fn bytes(work: &Work, events: bool) -> Result<f64> {
    let (near, far) = UnixStream::pair()?;
    link::forked(
        work,
        || {
            let end = connect(End::new(work, Side::Near, events)?, near)?;
            Ok(Bytes::new(end, work.size_bytes))
        },
        || {
            let end = connect(End::new(work, Side::Far, events)?, far)?;
            Ok(Bytes::new(end, work.reply_bytes()))
        },
    )
}

fn values<M>(work: &Work, events: bool) -> Result<f64>
where
    M: Message + Copy + std::fmt::Debug + ZeroCopySend + 'static,
{
    let (near, far) = UnixStream::pair()?;
    link::forked(
        work,
        || {
            let end = End::<M>::typed(Side::Near, events)?;
            Ok(Values::new(connect(end, near)?))
        },
        || {
            let end = End::<M>::typed(Side::Far, events)?;
            Ok(Values::new(connect(end, far)?))
        },
    )
}

pub fn bytes_polling(work: &Work) -> Result<f64> {
    bytes(work, false)
}

pub fn bytes_event(work: &Work) -> Result<f64> {
    bytes(work, true)
}

pub fn quotes_polling(work: &Work) -> Result<f64> {
    values::<Quote>(work, false)
}

pub fn quotes_event(work: &Work) -> Result<f64> {
    values::<Quote>(work, true)
}
