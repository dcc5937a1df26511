//! People at the API while the fleet is busy: gets, lists and patches at a steady pace, each with its own connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use super::generator::name_of;
use crate::api::Server;
use crate::report::Report;

/// Between two requests of one kind.
const PERIOD: Duration = Duration::from_millis(50);
const LIST_PERIOD: Duration = Duration::from_secs(1);

/// The three kinds of request at work.
pub(crate) struct Probe {
    stop: Arc<AtomicBool>,
    threads: Vec<(&'static str, f64, JoinHandle<Vec<f64>>)>,
}

impl Probe {
    /// `aims`: p99 of get, list and mutate, in milliseconds.
    pub(crate) fn start(server: &Server, devices: usize, aims: (f64, f64, f64)) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asking = |what: &'static str, period: Duration, ask: fn(&mut crate::api::Connection, usize, usize)| {
            let (mut connection, stop) = (server.connect().unwrap(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let (mut taken, mut number) = (Vec::new(), 0);
                let start = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    // Open loop: a slow answer does not thin the samples out.
                    let due = start + period * u32::try_from(number).unwrap();
                    if let Some(left) = due.checked_duration_since(Instant::now()) {
                        std::thread::park_timeout(left);
                        continue;
                    }
                    ask(&mut connection, number, devices);
                    taken.push(due.elapsed().as_secs_f64() * 1000.0);
                    number += 1;
                }
                let _what = what;
                taken
            })
        };
        let threads = vec![
            ("get of a Node", aims.0, asking("get", PERIOD, get)),
            ("list of 500 Nodes", aims.1, asking("list", LIST_PERIOD, list)),
            ("patch of a ConfigMap", aims.2, asking("patch", PERIOD, patch)),
        ];
        Self { stop, threads }
    }

    pub(crate) fn end(self, while_what: &str, report: &mut Report) {
        self.stop.store(true, Ordering::Relaxed);
        for (what, aim, thread) in self.threads {
            let taken = thread.join().unwrap();
            report.spread(&format!("API while {while_what}: {what}"), &taken, "ms", Some(aim));
        }
    }
}

fn get(connection: &mut crate::api::Connection, number: usize, devices: usize) {
    connection.get(&format!("/api/v1/nodes/{}", name_of(number * 7919 % devices)));
}

fn list(connection: &mut crate::api::Connection, _number: usize, _devices: usize) {
    connection.get("/api/v1/nodes?limit=500");
}

fn patch(connection: &mut crate::api::Connection, number: usize, _devices: usize) {
    let body = json!({"data": {"number": number.to_string()}});
    let path = "/api/v1/namespaces/default/configmaps/aside";
    connection.request("PATCH", path, "application/merge-patch+json", Some(&body));
}
