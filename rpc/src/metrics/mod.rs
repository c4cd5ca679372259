//! `GET /metrics`: counters of the daemon in the format of Prometheus.
//!
//! A scrape has two steps: everything is looked at once (`collect`), then the text is made page by page while the client takes it. Whatever
//! the scrapers do, things are looked at ten times a second at most: younger results are served again.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

mod collect;
mod families;
mod text;

pub use families::{FAMILIES, Family};
pub use text::Kind;

use crate::app::App;
use crate::exec::Gate;
use crate::http::Pages;
use collect::Snapshot;
use families::Source;
use text::Out;

/// For how long a look at everything is good.
const FRESH: Duration = Duration::from_millis(100);
/// Bytes from which a page is handed out.
const PAGE: usize = 32 * 1024;

/// Scrapers that may wait for one look.
const MAX_WAITING: usize = 256;

/// The last look, and the one that is under way with the number of those who wait for it.
#[derive(Default)]
pub(crate) struct Scraper {
    last: Option<Rc<Snapshot>>,
    running: Option<(Gate, usize)>,
}

/// The metrics of now, or of at most 100 ms ago; `None` if a core does not answer and many wait for it already.
pub(crate) async fn scrape(app: &App, scraper: &RefCell<Scraper>) -> Option<Pages> {
    let snapshot = loop {
        let running = {
            let mut s = scraper.borrow_mut();
            if let Some(last) = s.last.as_ref().filter(|last| last.at.elapsed() < FRESH) {
                break last.clone();
            }
            match &mut s.running {
                Some((_, waiting)) if *waiting >= MAX_WAITING => return None,
                Some((gate, waiting)) => {
                    *waiting += 1;
                    Some(gate.clone())
                }
                None => {
                    s.running = Some((Gate::default(), 0));
                    None
                }
            }
        };
        match running {
            // Somebody else looks already.
            Some(gate) => gate.wait().await,
            None => {
                let snapshot = Rc::new(collect::snapshot(app).await);
                let mut s = scraper.borrow_mut();
                s.last = Some(snapshot.clone());
                if let Some((gate, _)) = s.running.take() {
                    gate.open();
                }
                break snapshot;
            }
        }
    };
    let mut at = Place::default();
    Some(Box::new(std::iter::from_fn(move || at.page(&snapshot))))
}

/// How far the text is.
#[derive(Default)]
struct Place {
    family: usize,
    element: usize,
}

impl Place {
    fn page(&mut self, snapshot: &Snapshot) -> Option<String> {
        let mut page = String::with_capacity(PAGE + 4096);
        while let Some(family) = FAMILIES.get(self.family) {
            if self.element == 0 {
                text::head(&mut page, family.name, family.help, family.kind);
            }
            let mut out = Out::new(&mut page, family.name, family.labels);
            let put = |out: &mut Out<'_>, i: usize| -> Option<()> {
                match family.source {
                    Source::Process(f) => (i == 0).then(|| f(snapshot, out)),
                    Source::Devices(f) => snapshot.devices.get(i).map(|d| f(d, out)),
                    Source::Subsystems(f) => snapshot.subsystems.get(i).map(|s| f(s, out)),
                    Source::Cores(f) => snapshot.cores.get(i).map(|c| f(c, out)),
                }
            };
            if put(&mut out, self.element).is_some() {
                self.element += 1;
            } else {
                *self = Place { family: self.family + 1, element: 0 };
            }
            if page.len() >= PAGE {
                break;
            }
        }
        (!page.is_empty()).then_some(page)
    }
}

const HEAD: &str = "\
# Metrics

Printed from the declarations in `rpc/src/metrics/families.rs`; do not edit. After a change there:
`UPDATE_DOCS=1 cargo test -p longshore-rpc --test docs`. How to have them scraped: [operations](operations.md#metrics).

Names of ceph-nvmeof's exporter are used for what it exports too, with its labels; what describes Ceph itself or the network interfaces is left to
other exporters. `core` is the number of a CPU, `name` that of `thread_get_stats`. Counters of devices are set back by `bdev_reset_iostat`.

| name | type | labels | meaning |
|---|---|---|---|
";

/// `docs/metrics.md`.
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    for f in FAMILIES {
        out += &format!("| `{}` | {} | {} | {} |\n", f.name, f.kind.name(), f.labels.join(", "), f.help);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use collect::Device;

    #[test]
    fn many_devices_come_in_small_pages_and_each_family_in_one_piece() {
        let device =
            |n| Device { name: format!("disk{n}"), product: "Test disk", block_size: 4096, ..Device::default() };
        let devices = (0..3000).map(device).collect();
        let snapshot = Snapshot { devices, ..Snapshot::empty() };
        let mut at = Place::default();
        let pages: Vec<String> = std::iter::from_fn(|| at.page(&snapshot)).collect();
        assert!(pages.len() > 20 && pages.iter().all(|page| page.len() < PAGE + 4096));
        let text = pages.concat();
        assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE ")).count(), FAMILIES.len());
        let mut family = "";
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => family = rest.split(' ').next().unwrap(),
                None => assert!(line.starts_with('#') || line.starts_with(family), "{line} stands under {family}"),
            }
        }
        assert_eq!(text.matches("ceph_nvmeof_bdev_read_bytes_total{").count(), 3000);
    }
}
