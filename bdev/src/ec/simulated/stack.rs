//! An array as the simulator starts it: what is found on the members decides, as it does in the daemon.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longshore_accel::cores::CoresOptions;
use longshore_accel::{Accel, Cores};
use longshore_reactor::sim::Random;
use uuid::Uuid;

use super::made::{ANOTHER, Made};
use super::name;
use crate::channel::Channel;
use crate::desc::BdevDesc;
use crate::ec::assemble::{Candidate, Decision, Refusal, Rejection, Situation, decide};
use crate::ec::check::{ReadAt, Scope, Verdict, check};
use crate::ec::create::Prepared;
use crate::ec::faults::{self, Mutant};
use crate::ec::format::{FormatError, MemberEntry, MemberState, PAGE_BITS_BYTES, PageHeader, PageKind, Superblock};
use crate::ec::layout::{Layout, LayoutOptions, PAGE_BYTES, SUPERBLOCK_BYTES};
use crate::ec::start::start_watched;
use crate::ec::{Ec, Newcomer, ScrubOptions, ScrubState, Tuning};
use crate::io::IoFlags;
use crate::registry::BdevError;
use crate::sim::{Comes, Content, DEVICE, Image, Outlook, Place, Shape, SimMember, Stack, Windows, World, member_name};

/// Data and parity strips.
const GEOMETRIES: [(usize, usize); 9] = [(1, 1), (2, 1), (4, 2), (3, 2), (2, 2), (1, 2), (4, 1), (5, 3), (4, 4)];
/// A member that takes longer has failed. Slow ones take less, those that hang more.
const TIMEOUT: Duration = Duration::from_millis(600);
/// Reads go past a member that takes longer: slow ones do, and some answers of others.
const SLOW: Duration = Duration::from_millis(3);

/// One array.
pub(super) struct Array {
    pub(super) layout: Layout,
    /// By slot: bytes of the member's block, and whether its cache is volatile.
    members: Vec<(u32, bool)>,
    /// The array is made by what makes arrays; `None`: its superblocks and bitmaps are just there.
    pub(super) made: Option<Made>,
    seed: u64,
    /// There are accel cores; this decides how long they take.
    accel: Option<u64>,
}

impl Array {
    /// The array of `seed`.
    pub(super) fn of(seed: u64) -> Array {
        let mut random = Random::new(seed ^ 0xa44a);
        let (k, m) = GEOMETRIES[random.below(GEOMETRIES.len() as u64) as usize];
        let strip = [4096, 4096, 8192][random.below(3) as usize];
        let blocks = [[512, 512], [4096, 4096], [512, 4096]][random.below(3) as usize];
        // All have a volatile cache, or none, or any, or no more than may be lost.
        let mixed = random.below(8);
        let caches: Vec<bool> = match mixed {
            0..4 => vec![true; k + m],
            4 => vec![false; k + m],
            5 | 6 => (0..k + m).map(|_| random.below(2) == 0).collect(),
            _ => {
                let first = random.below((k + m) as u64) as usize;
                let some = 1 + random.below(m as u64) as usize;
                (0..k + m).map(|i| (i + first) % (k + m) < some).collect()
            }
        };
        let members: Vec<_> = (0..k + m).map(|i| (blocks[i % 2], caches[i])).collect();
        let block = members.iter().map(|m| m.0).max().unwrap_or(512);
        let o = LayoutOptions {
            journal_slots: Some(4 + random.below(9) as u32),
            alignment: Some(4096),
            region_stripes: Some(1 << random.below(3)),
        };
        let mut layout = Layout::compute(k, m, strip, block, 16 << 20, &o).expect("a legal layout");
        layout.stripes = 6 + random.below(20);
        // The others have none, and do what they did before there were any.
        let accel = (seed % 4 == 1).then(|| random.bits());
        Array { layout, members, made: Made::of(seed, o), seed, accel }
    }

    pub(super) fn head(&self) -> Superblock {
        Superblock { name: "array".into(), ..crate::ec::tests::head(self.layout) }
    }

    /// The array, once it is there.
    pub(super) fn uuid(&self) -> Uuid {
        self.made.as_ref().and_then(|made| made.array.get()).unwrap_or(self.head().array)
    }

    fn is_ours(&self, sb: &Superblock) -> bool {
        match &self.made {
            // Until it is there, it may be any.
            Some(made) if made.array.get().is_none() => sb.array != ANOTHER,
            _ => sb.array == self.uuid(),
        }
    }

    /// What computes: on the array's core, or on two accel cores, of which one is another reactor. Jobs of any size go there, or not those of a few
    /// blocks, and begin at once or as late as a member answers.
    fn engines(&self, place: &Place) -> Accel {
        let Some(seed) = self.accel else { return Accel::default() };
        let random = Mutex::new(Random::new(seed ^ place.world.life()));
        let before = move || {
            let mut random = random.lock().unwrap_or_else(PoisonError::into_inner);
            let most = [1, 50, 500, 5000][random.below(4) as usize];
            Duration::from_micros(random.below(most))
        };
        let options = CoresOptions { least: [0, 0, 32 << 10][(seed % 3) as usize], before: Some(Arc::new(before)) };
        let cores = place.reactor.peers().iter().rev().cloned().collect();
        Accel::default().with_cores(Cores::on(cores, options))
    }

    /// Lets the array be there: a superblock on every member.
    async fn put_there(&self, place: &Place, members: &[Option<BdevDesc>]) -> Result<(), String> {
        let head = self.head();
        for (slot, desc) in members.iter().enumerate() {
            let channel = channel(desc.as_ref().ok_or("a member is absent")?)?;
            let mut buf = place.reactor.dma().alloc(SUPERBLOCK_BYTES as usize).ok_or("out of memory")?;
            head.for_slot(slot).encode(buf.get_mut().ok_or("a buffer is shared")?);
            let bs = u64::from(self.members[slot].0);
            self.clear_bitmaps(place, &channel, bs).await?;
            let lba = Layout::superblock_at(head.copy()) / bs;
            let status = channel.write(lba, (SUPERBLOCK_BYTES / bs) as u32, buf, IoFlags::FUA).await.0;
            if status.is_err() {
                return Err(format!("a superblock cannot be written: {status}"));
            }
        }
        Ok(())
    }

    /// Writes the bitmaps of a new array to a member: nothing is set.
    async fn clear_bitmaps(&self, place: &Place, channel: &Channel, bs: u64) -> Result<(), String> {
        let l = &self.layout;
        let maps = (0..l.map_pages()).map(|p| (PageKind::Map, p, l.map_page_at(p, 1)));
        let wibs = (0..l.wib_pages()).map(|p| (PageKind::Wib, p, l.wib_page_at(p, 1)));
        for (kind, page, at) in maps.chain(wibs) {
            let mut buf = place.reactor.dma().alloc(PAGE_BYTES as usize).ok_or("out of memory")?;
            let header = PageHeader { array: self.head().array, kind, index: page as u32, sequence: 1, generation: 0 };
            header.encode(&[0; PAGE_BITS_BYTES], buf.get_mut().ok_or("a buffer is shared")?);
            let status = channel.write(at / bs, (PAGE_BYTES / bs) as u32, buf, IoFlags::FUA).await.0;
            if status.is_err() {
                return Err(format!("a page cannot be written: {status}"));
            }
        }
        Ok(())
    }

    /// The superblock of a member, if it has one.
    async fn superblock(&self, place: &Place, slot: usize, desc: &BdevDesc) -> Option<Superblock> {
        let channel = channel(desc).ok()?;
        let bs = u64::from(self.members[slot].0);
        let mut copies = Vec::new();
        for copy in 0..2 {
            let buf = place.reactor.dma().alloc(SUPERBLOCK_BYTES as usize)?;
            let (status, buf) =
                channel.read(Layout::superblock_at(copy) / bs, (SUPERBLOCK_BYTES / bs) as u32, buf).await;
            copies.push(buf.filter(|_| status.is_ok()).map_or_else(Vec::new, |b| b.as_slice().to_vec()));
        }
        Superblock::select([&copies[0], &copies[1]]).ok()
    }

    /// The same of a member that nobody uses, whatever it is of.
    pub(super) fn superblock_at_rest(&self, world: &World, slot: usize) -> Result<Superblock, FormatError> {
        let image = OnImage { world, index: slot, block: self.members[slot].0 };
        let copy = |copy| {
            let mut bytes = vec![0; SUPERBLOCK_BYTES as usize];
            image.read_at(Layout::superblock_at(copy), &mut bytes).map_or_else(|_| Vec::new(), |()| bytes)
        };
        Superblock::select([&copy(0), &copy(1)])
    }

    /// The member in `slot`, which nobody uses, if it says that it is one.
    pub(super) fn at_rest(&self, world: &World, slot: usize) -> Option<Candidate> {
        let superblock = self.superblock_at_rest(world, slot).ok().filter(|sb| self.is_ours(sb))?;
        let (name, block) = (member_name(slot), self.members[slot].0);
        Some(Candidate { name, superblock, bytes: self.layout.member_bytes(), block })
    }

    /// Takes a member out of the running array: on purpose, or as if its device had been removed.
    async fn leave(&self, place: &Place, ec: &Ec, m: usize) -> Result<(), BdevError> {
        let used = || matches!(ec.member_state(m), MemberState::InSync | MemberState::Rebuilding);
        if used() && place.world.below(2) == 0 {
            ec.retire(m).await?;
        }
        if used() {
            ec.member_gone(m, "it was taken away");
            while used() {
                place.reactor.sleep(Duration::from_micros(100)).await;
            }
        }
        ec.vacated(m).await
    }

    /// Starts the array from a superblock and with a quorum.
    pub(super) async fn run(
        &self,
        place: &Place,
        start: (Superblock, usize),
        members: Vec<Option<BdevDesc>>,
    ) -> Result<(), String> {
        let tuning = Tuning {
            nonce: Some(place.world.below(u64::MAX - 1) + 1),
            write_timeout: TIMEOUT,
            slow_read: SLOW,
            // Often at once: what is stored too early shows only until the next flush.
            rebuild_checkpoint: Duration::from_micros([0, 0, 20, 300][place.world.below(4) as usize]),
        };
        start_watched(&place.registry, DEVICE, start, members, tuning, &self.engines(place), None)
            .await
            .map(drop)
            .map_err(|e| e.to_string())
    }

    fn open(&self, place: &Place) -> Result<Vec<Option<BdevDesc>>, String> {
        let mut members: Vec<Option<BdevDesc>> = (0..self.layout.n()).map(|_| None).collect();
        for &slot in &place.present {
            let desc = place.registry.open(&member_name(slot), true, Box::new(|_| {})).map_err(|e| e.to_string())?;
            members[slot] = Some(desc);
        }
        Ok(members)
    }

    /// What is decided about the members that are there.
    pub(super) async fn judge(&self, place: &Place) -> Result<Decision, String> {
        let found = self.candidates(place, &self.open(place)?).await;
        Ok(decide(&found, Situation { waited: true, salvage: false }))
    }

    async fn candidates(&self, place: &Place, members: &[Option<BdevDesc>]) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (slot, desc) in members.iter().enumerate() {
            let Some(desc) = desc else { continue };
            // The daemon looks at the devices of each array by themselves.
            if let Some(superblock) = self.superblock(place, slot, desc).await.filter(|sb| self.is_ours(sb)) {
                let (name, block) = (member_name(slot), self.members[slot].0);
                found.push(Candidate { name, superblock, bytes: self.layout.member_bytes(), block });
            }
        }
        found
    }
}

fn channel(desc: &BdevDesc) -> Result<Channel, String> {
    desc.channel().map_err(|e| e.to_string())
}

impl Stack for Array {
    fn shape(&self) -> Shape {
        let l = &self.layout;
        Shape {
            blocks: l.num_blocks(),
            stripe: l.stripe_blocks(),
            members: l.n(),
            tolerates: l.m.min(l.n() - self.head().quorum()),
            redundancy: l.m,
            exceeds: true,
            rebuilds: true,
            salvages: true,
            volatile: self.members.iter().rev().fold(0, |mask, m| mask << 1 | u64::from(m.1)),
            member_blocks: (l.member_bytes() / 512) as usize,
            unmap_unit: l.stripe_blocks(),
            start_requests: l.n() as u64 * (u64::from(l.journal_slots) + 16),
            make_requests: self.made.as_ref().map_or(0, |_| l.n() as u64 * Made::REQUESTS),
        }
    }

    fn images(&self) -> Vec<Image> {
        let image = |&(block, volatile)| {
            Image::new(block as usize, (self.layout.member_bytes() / u64::from(block)) as usize, volatile)
        };
        let mut images: Vec<_> = self.members.iter().map(image).collect();
        self.write_before(self.seed, &mut images);
        images
    }

    fn windows(&self) -> Windows {
        || faults::open_windows().into_iter().map(name).collect()
    }

    async fn start(&self, place: &Place) -> Result<(), String> {
        // What was open at the last crash nobody closed.
        faults::close_windows();
        if let (true, Some(made)) = (place.first, &self.made)
            && let Some(Prepared { head, quorum, members, .. }) = self.make(place, made).await?
        {
            return self.run(place, (head, quorum), members).await;
        }
        if place.salvage {
            return self.salvage(place).await;
        }
        let mut members = self.open(place)?;
        let mut found = self.candidates(place, &members).await;
        if place.first && found.len() < self.layout.n() {
            self.put_there(place, &members).await?;
            found = self.candidates(place, &members).await;
        }
        let mut assembly = match decide(&found, Situation { waited: true, salvage: false }) {
            Decision::Assemble(a) => a,
            other => return Err(format!("{other:?}")),
        };
        if faults::is(Mutant::EpochNotChecked) {
            // Whichever is found first is believed.
            assembly.head = found[0].superblock.clone();
        }
        if faults::is(Mutant::StaleMemberJoined) || faults::is(Mutant::EpochNotChecked) {
            for (candidate, why) in std::mem::take(&mut assembly.rejected) {
                let slot = found[candidate].superblock.slot;
                if matches!(why, Rejection::Stale { .. }) {
                    assembly.members[slot] = Some(candidate);
                    assembly.head.members[slot] = MemberEntry::in_sync(assembly.head.members[slot].uuid);
                }
            }
        }
        for (slot, taken) in assembly.members.iter().enumerate() {
            if taken.is_none() {
                members[slot] = None;
            }
        }
        self.run(place, (assembly.head, assembly.quorum), members).await
    }

    async fn stop(&self, place: &Place) {
        let Some(node) = place.registry.find(DEVICE) else { return };
        let closed = node.device().as_any().downcast_ref::<Ec>().and_then(Ec::closed);
        drop(node);
        let _ = place.registry.unregister(DEVICE).await;
        if let Some(closed) = closed {
            let _ = closed.await;
        }
    }

    fn inspect(&self, world: &World, sound: &[bool]) -> Result<(), String> {
        let there: Vec<usize> = (0..sound.len()).filter(|&i| sound[i]).collect();
        let devices: Vec<OnImage> =
            there.iter().map(|&i| OnImage { world, index: i, block: self.members[i].0 }).collect();
        let devices: Vec<&dyn ReadAt> = devices.iter().map(|d| d as &dyn ReadAt).collect();
        let report = check(&devices, Scope::default());
        match report.verdict {
            Verdict::Sound | Verdict::Degraded => Ok(()),
            _ => Err(format!("the check of members {there:?} says {:?}: {:?}", report.verdict, report.findings)),
        }
    }

    fn given_up(&self, world: &World) -> Result<Option<Vec<bool>>, String> {
        let found: Vec<Candidate> = (0..self.members.len()).filter_map(|slot| self.at_rest(world, slot)).collect();
        let decided = match decide(&found, Situation { waited: true, salvage: false }) {
            // It was salvaged, and too few are in sync yet. Otherwise, too many are given up.
            Decision::Refuse(Refusal::TooFew { .. }) => decide(&found, Situation { waited: true, salvage: true }),
            decided => decided,
        };
        match decided {
            Decision::Assemble(a) => {
                // The head may be on a few members that are missing next: what only it says to be in sync is not yet.
                let in_sync = |sb: &Superblock, slot: usize| sb.members[slot].state == MemberState::InSync;
                // One that cannot be read may hold the newer copy.
                let taken = |slot: usize| a.members[slot].is_some() && in_sync(&a.head, slot);
                let speaks = |slot: usize| taken(slot) && !world.image(slot, |i| i.is_damaged());
                let all_say =
                    |slot| found.iter().filter(|c| speaks(c.superblock.slot)).all(|c| in_sync(&c.superblock, slot));
                let given_up = |slot: usize| a.members[slot].is_none() || !in_sync(&a.head, slot) || !all_say(slot);
                Ok(Some((0..self.members.len()).map(given_up).collect()))
            }
            other => Err(format!("they make no array: {other:?}")),
        }
    }

    async fn give_back(&self, place: &Place, m: usize, comes: Comes) -> Result<(), String> {
        let node = place.registry.find(DEVICE).ok_or("there is no array")?;
        let ec = node.device().as_any().downcast_ref::<Ec>().ok_or("it is no array")?;
        self.leave(place, ec, m).await.map_err(|e| format!("it does not leave: {e}"))?;
        // Nobody can tell that one has forgotten what it had while it counted as in sync: it is named failed first.
        if comes == Comes::Older {
            ec.retire(m).await.map_err(|e| format!("it is not named failed: {e}"))?;
        }
        let name = member_name(m);
        if place.registry.find(&name).is_some() {
            place.registry.unregister(&name).await.map_err(|e| e.to_string())?;
        }
        place.world.bring(m, comes);
        if comes == Comes::Foreign {
            self.estrange(&place.world, m);
        }
        place.registry.register(&name, None, SimMember::new(&place.world, m)).map_err(|e| e.to_string())?;
        let desc = place.registry.open(&name, true, Box::new(|_| {})).map_err(|e| e.to_string())?;
        let ours = |sb: &Superblock| self.is_ours(sb) && sb.slot == m;
        let found = self.superblock(place, m, &desc).await.filter(ours);
        let new = || Uuid::from_u128(1 << 64 | u128::from(place.world.below(u64::MAX)));
        let uuid = found.as_ref().map_or_else(new, |sb| sb.member().uuid);
        ec.join(m, Newcomer { desc, uuid, found }).await.map(drop).map_err(|e| e.to_string())
    }

    fn is_whole(&self, place: &Place, m: usize) -> bool {
        let Some(node) = place.registry.find(DEVICE) else { return false };
        node.device().as_any().downcast_ref::<Ec>().is_some_and(|ec| ec.member_state(m) == MemberState::InSync)
    }

    fn is_rebuilding(&self, place: &Place) -> bool {
        let Some(node) = place.registry.find(DEVICE) else { return false };
        node.device().as_any().downcast_ref::<Ec>().is_some_and(|ec| !ec.rebuild_progress().is_empty())
    }

    fn estrange(&self, world: &World, m: usize) {
        let other = Superblock { array: ANOTHER, name: "another".into(), ..self.head() };
        let (bs, mut bytes) = (self.members[m].0 as usize, vec![0; SUPERBLOCK_BYTES as usize]);
        other.for_slot(m).encode(&mut bytes);
        let at = Layout::superblock_at(other.copy()) as usize / bs;
        let bytes: Arc<[u8]> = bytes.into();
        let blocks = (0..bytes.len()).step_by(bs).map(|from| Content::Data(bytes.clone(), from as u32));
        world.image(m, |i| i.put(at, blocks));
    }

    fn outlook(&self, world: &World, present: &[usize]) -> Outlook {
        self.look_ahead(world, present)
    }

    fn is_member(&self, world: &World, m: usize) -> bool {
        self.at_rest(world, m).is_some()
    }

    fn holder(&self, block: u64) -> Option<usize> {
        let place = self.layout.place(block);
        Some(self.layout.slot_of(place.stripe, place.data))
    }

    fn may_rot(&self, member: usize) -> Range<usize> {
        let bs = u64::from(self.members[member].0);
        let l = &self.layout;
        (l.data_offset / bs) as usize..((l.data_offset + l.stripes * u64::from(l.strip)) / bs) as usize
    }

    async fn scrub(&self, place: &Place) -> Result<bool, String> {
        let node = place.registry.find(DEVICE).ok_or("there is no device")?;
        let ec = node.device().as_any().downcast_ref::<Ec>().ok_or("it is no array")?;
        ec.start_scrub(ScrubOptions { stripes_per_second: 0 }).map_err(|e| e.to_string())?;
        loop {
            let p = ec.scrub_progress();
            match p.state {
                ScrubState::Running => place.reactor.sleep(Duration::from_millis(1)).await,
                ScrubState::Finished => return Ok(p.ambiguous + p.unreadable == 0),
                other => return Err(format!("the scrub is {}", other.name())),
            }
        }
    }
}

/// A member at rest.
struct OnImage<'a> {
    world: &'a World,
    index: usize,
    block: u32,
}

impl ReadAt for OnImage<'_> {
    fn name(&self) -> String {
        member_name(self.index)
    }

    fn bytes(&self) -> u64 {
        self.world.image(self.index, |i| i.len() as u64) * u64::from(self.block)
    }

    fn block(&self) -> u32 {
        self.block
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bs = self.block as usize;
        let (mut at, mut whole) = (offset as usize, vec![0; bs]);
        let mut to = buf;
        while !to.is_empty() {
            let within = at % bs;
            let n = to.len().min(bs - within);
            if !self.world.image(self.index, |i| i.read(at / bs, &mut whole)) {
                return Err(io::Error::other("a block cannot be read"));
            }
            to[..n].copy_from_slice(&whole[within..within + n]);
            to = &mut to[n..];
            at += n;
        }
        Ok(())
    }
}
