//! How soon an idle worker's handler starts.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postbox::{Context, Event, Postbox, Subscription, Worker};

use crate::Bench;
use crate::floor::Floor;
use crate::measure::{Sample, micros_of};
use crate::report::{Goal, Report, Row};
use crate::work::{NAME, event, open};

/// Long enough for every thread to have gone to sleep.
const REST: Duration = Duration::from_millis(2);

pub(crate) fn latency(bench: &Bench, report: &mut Report) {
    let postbox = open(&bench.path("box.db"));
    let (worker, starts) = idle_worker(&postbox);
    let mut floor = Floor::open(&bench.path("floor.db"));
    let sleeper = Sleeper::start();

    let [mut return_p50, mut return_p99, mut wake_p50, mut wake_p99] = [(); 4].map(|()| Sample::default());
    let [mut call_p50, mut least_p50] = [(); 2].map(|()| Sample::default());
    for _ in 0..bench.scale.rounds {
        let [mut from_return, mut from_call, mut wakes, mut commits] = [(); 4].map(|()| Sample::default());
        for number in 0..bench.scale.wakes {
            thread::sleep(REST);
            let called = Instant::now();
            postbox.publish(event(number)).expect("published");
            let returned = Instant::now();
            let started = starts.recv().expect("a start");
            from_return.push(micros_between(returned, started));
            from_call.push(micros_between(called, started));
            thread::sleep(REST);
            wakes.push(sleeper.wake());
            thread::sleep(REST); // a disk and a core that rested are slower, for the floor as well
            commits.push(micros_of(|| floor.publish(number, 1)));
        }
        return_p50.push(from_return.percentile(50));
        return_p99.push(from_return.percentile(99));
        wake_p50.push(wakes.percentile(50));
        wake_p99.push(wakes.percentile(99));
        call_p50.push(from_call.percentile(50));
        least_p50.push(commits.percentile(50) + 2.0 * wakes.percentile(50));
    }
    sleeper.end();
    drop(worker);

    let what = "publish returned to handler";
    let row = Row::against(format!("{what}, p50 (floor: a channel's wake-up)"), "us", &return_p50, &wake_p50);
    report.add(row.goal(Goal::RatioAtMost(2.0)));
    let row = Row::against(format!("{what}, p99 (floor: a channel's wake-up)"), "us", &return_p99, &wake_p99);
    report.add(row.goal(Goal::RatioAtMost(5.0)));
    let what = "publish called to handler, p50 (floor: a commit + 2 wake-ups)";
    report.add(Row::against(what, "us", &call_p50, &least_p50).goal(Goal::RatioAtMost(1.0)));
}

/// With nothing to do. Its handler says when it starts.
fn idle_worker(postbox: &Postbox) -> (Worker, Receiver<Instant>) {
    let (started, starts) = channel();
    let handler = move |_: &Event, _: &Context<'_>| {
        started.send(Instant::now())?;
        Ok(())
    };
    postbox.subscribe(Subscription::new(NAME, "c", handler)).expect("subscribed");
    let worker = postbox.start().expect("a worker");
    assert!(worker.wait_for_startup_drain(Duration::from_mins(1)), "an empty box is drained");
    (worker, starts)
}

/// A thread that waits at a channel, and does nothing but say when it woke up.
struct Sleeper {
    bell: Sender<()>,
    wakes: Receiver<Instant>,
    thread: JoinHandle<()>,
}

impl Sleeper {
    fn start() -> Self {
        let (bell, rings) = channel::<()>();
        let (woken, wakes) = channel();
        let thread = thread::spawn(move || {
            for () in rings {
                woken.send(Instant::now()).expect("a listener");
            }
        });
        Sleeper { bell, wakes, thread }
    }

    /// Microseconds from ringing to its first line.
    fn wake(&self) -> f64 {
        let rung = Instant::now();
        self.bell.send(()).expect("a sleeper");
        micros_between(rung, self.wakes.recv().expect("a wake-up"))
    }

    fn end(self) {
        drop(self.bell);
        self.thread.join().expect("the sleeper");
    }
}

/// Below zero when the handler started before `publish` returned.
fn micros_between(from: Instant, to: Instant) -> f64 {
    let seconds = match to.checked_duration_since(from) {
        Some(later) => later.as_secs_f64(),
        None => -from.duration_since(to).as_secs_f64(),
    };
    seconds * 1e6
}
