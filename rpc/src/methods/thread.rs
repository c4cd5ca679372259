//! `framework_get_reactors`, `thread_*`, `iobuf_get_stats`: what the cores do.

use std::sync::Arc;

use longshore_reactor::{CoreHandle, DmaStats, tick_rate};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::Reply;
use crate::method::{Method, Registry, When};

/// Name of the part of a core that serves queue pairs; clients look for "poll" in it.
pub(crate) fn poll_group(core: &CoreHandle) -> String {
    format!("nvmf_tgt_poll_group_{:03}", core.index())
}

/// A mask with one core in it, as hexadecimal digits.
fn mask(cpu: u32) -> String {
    format!("{:x}{}", 1u8 << (cpu % 4), "0".repeat(cpu as usize / 4))
}

pub(super) fn declare(registry: &mut Registry) {
    registry.add(
        Method::bare("framework_get_reactors", When::Runtime, "`framework_get_reactors` requires no arguments", reactors)
            .doc("Busy and idle time of each core, in ticks. A core that sleeps counts as idle. `sys` and `usr` are CPU time in units of 10 ms.")
            .result("{tick_rate, pid, reactors[{lcore, numa_id, tid, busy, idle, in_interrupt, irq, sys, usr, turns, longest_turn, sleeps, wakeups, lw_threads[]}]}"),
    );
    registry.add(
        Method::bare("thread_get_stats", When::Runtime, "'thread_get_stats' requires no arguments", threads)
            .doc("Busy and idle time of the work on each core, in ticks.")
            .result("{tick_rate, threads[{name, id, cpumask, busy, idle, active_pollers_count, timed_pollers_count, paused_pollers_count}]}"),
    );
    registry.add(
        Method::bare("thread_get_pollers", When::Runtime, "'thread_get_pollers' requires no arguments", pollers)
            .doc("The pollers of each core and how often they ran and found work.")
            .result("{tick_rate, threads[{name, id, active_pollers[], timed_pollers[], paused_pollers[]}]}"),
    );
    registry.add(
        Method::bare(
            "thread_get_io_channels",
            When::Runtime,
            "'thread_get_io_channels' requires no arguments",
            channels,
        )
        .doc("The block devices that are open on each core.")
        .result("{tick_rate, threads[{name, io_channels[{name, ref}]}]}"),
    );
    registry.add(
        Method::bare("iobuf_get_stats", When::Runtime, "iobuf_get_stats requires no parameters", buffers)
            .doc("I/O memory: per core, how often a buffer was had (`main`) and how often somebody had to wait (`retry`); `classes` and `memory` \
                  go into detail, and say why memory is not registered with the ring where it is not.")
            .result("array of {module, small_pool{cache, main, retry, cache_size}, large_pool{}, classes[], memory{}}"),
    );
}

/// User and system time of a thread in units of 10 ms.
fn cpu_time(tid: i32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    // The name in the second field may hold anything; what follows its closing bracket is regular.
    let mut fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11);
    let mut next = || fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
    (next(), next())
}

async fn reactors(app: Arc<App>) -> Reply {
    let list = app.cores.iter().map(|core| {
        let stats = core.stats();
        let (usr, sys) = cpu_time(core.tid());
        json!({
            "lcore": core.cpu(), "numa_id": 0, "tid": core.tid(), "busy": stats.busy, "idle": stats.idle, "in_interrupt": false,
            "irq": 0, "sys": sys, "usr": usr, "turns": stats.turns, "longest_turn": stats.longest_turn, "sleeps": stats.sleeps,
            "wakeups": stats.wakeups,
            "lw_threads": [{
                "name": poll_group(core), "id": core.index() + 1, "cpumask": mask(core.cpu()), "elapsed": stats.busy + stats.idle,
            }],
        })
    });
    Ok(json!({"tick_rate": tick_rate(), "pid": std::process::id(), "reactors": list.collect::<Value>()}))
}

async fn threads(app: Arc<App>) -> Reply {
    let mut list = Vec::new();
    for core in &app.cores {
        let stats = core.stats();
        let pollers = core.pollers().await.map_or(0, |pollers| pollers.len());
        list.push(json!({
            "name": poll_group(core), "id": core.index() + 1, "cpumask": mask(core.cpu()), "busy": stats.busy, "idle": stats.idle,
            "active_pollers_count": pollers, "timed_pollers_count": 0, "paused_pollers_count": 0,
        }));
    }
    Ok(json!({"tick_rate": tick_rate(), "threads": list}))
}

async fn pollers(app: Arc<App>) -> Reply {
    let mut list = Vec::new();
    for core in &app.cores {
        let pollers = core.pollers().await.unwrap_or_default();
        let pollers = pollers.iter().zip(1..).map(|(p, id)| {
            json!({"name": p.name, "id": id, "state": "waiting", "run_count": p.runs, "busy_count": p.busy_runs, "busy": p.busy, "idle": p.idle})
        });
        list.push(json!({
            "name": poll_group(core), "id": core.index() + 1, "active_pollers": pollers.collect::<Value>(), "timed_pollers": [],
            "paused_pollers": [],
        }));
    }
    Ok(json!({"tick_rate": tick_rate(), "threads": list}))
}

async fn channels(app: Arc<App>) -> Reply {
    let bdevs = app.bdevs.list();
    let list = app.cores.iter().map(|core| {
        let open = bdevs.iter().filter(|node| node.channel_stats().iter().any(|(index, _)| *index == core.index()));
        let open: Value = open.map(|node| json!({"name": format!("bdev_{}", node.name()), "ref": 1})).collect();
        json!({"name": poll_group(core), "io_channels": open})
    });
    Ok(json!({"tick_rate": tick_rate(), "threads": list.collect::<Value>()}))
}

async fn buffers(app: Arc<App>) -> Reply {
    let small = App::lock(&app.options.iobuf).small_bufsize as usize;
    let mut list = Vec::new();
    for core in &app.cores {
        if let Ok(stats) = core.call(|reactor| reactor.dma().stats()).await {
            list.push(pool(core, &stats, small));
        }
    }
    Ok(Value::Array(list))
}

fn pool(core: &CoreHandle, stats: &DmaStats, small: usize) -> Value {
    let side = |is_small: bool| {
        let classes = stats.classes.iter().filter(|class| (class.size <= small) == is_small);
        let (main, retry) = classes.fold((0, 0), |(main, retry), class| (main + class.allocs, retry + class.waits));
        json!({"cache": 0, "main": main, "retry": retry, "cache_size": 0})
    };
    let classes = stats.classes.iter().map(|class| {
        json!({
            "size": class.size, "in_use": class.in_use, "peak": class.peak, "capacity": class.capacity, "failures": class.failures,
            "waits": class.waits,
        })
    });
    json!({
        "module": poll_group(core), "small_pool": side(true), "large_pool": side(false), "classes": classes.collect::<Value>(),
        "memory": {
            "committed": stats.committed, "limit": stats.limit, "huge": stats.huge, "registered": stats.registered,
            "not_registered_because": stats.register_error, "lent": stats.adopted,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_names_its_core() {
        assert_eq!((mask(0).as_str(), mask(3).as_str(), mask(4).as_str(), mask(9).as_str()), ("1", "8", "10", "200"));
    }
}
