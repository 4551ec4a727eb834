package check

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent/storedir"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/extent/tabledb"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// Config says what to check.
type Config struct {
	FS  vfs.FS
	Dir string
	// Finding is called with each thing that is wrong, in words. It must not be nil.
	Finding func(text string)
	// Progress is called now and then with the blocks that were read, and about how many there are. May be nil.
	Progress func(done, total uint64)
}

// Report says what was looked at.
type Report struct {
	Identity               storedir.Identity
	Groups, Volumes        int
	Staged                 int    // table sets that pulls have left, for the next one to share from
	Pages, Blocks, Damaged uint64 // table pages and blocks read; blocks that could not be, or failed their checksum
	Findings               int
	Garbage                int // damaged places in segments that nothing needs: no findings
}

// Run verifies a stopped store: every record of the log, every key of the tables, what versions inherit from each other, the live
// counts, and every block.
// It writes nothing. Findings are told by Config.Finding; the error says why the check could not be made:
// KindConflict when the store is in use, KindNotFound, KindUnsupported, KindIO, KindCanceled.
func Run(ctx context.Context, cfg Config) (Report, error) {
	c := &checker{cfg: cfg, sets: map[table.SetID]*checkedSet{}}
	err := c.all(ctx)
	return c.report, err
}

type checker struct {
	cfg    Config
	report Report
	db     *tabledb.DB
	log    *segment.Reader
	sets   map[table.SetID]*checkedSet // of groups, and of pulls into them
	inLog  []logFinding
	total  uint64
	block  [storage.BlockSize]byte
}

// checkedSet is what the keys of one table set say: that of a group, or one that a pull has left.
type checkedSet struct {
	key     segment.GroupKey
	from    segment.Position // where recovery begins
	deleted map[storage.VolumeID]bool
	stored  table.Counts // live counts as stored
	walked  table.Counts // as the tables say

	mapped, heads map[storage.VolumeID]int64 // blocks of newest versions: as stored where that is known, as the tables say
}

func (c *checker) find(format string, args ...any) {
	c.report.Findings++
	c.cfg.Finding(fmt.Sprintf(format, args...))
}

func (c *checker) all(ctx context.Context) (err error) {
	fs, dir := c.cfg.FS, c.cfg.Dir
	if c.report.Identity, err = storedir.ReadIdentity(fs, dir); err != nil {
		return err
	}
	lock, err := storedir.Lock(fs, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	c.log, err = segment.Check(fs, storedir.LogDir(fs, dir), c.report.Identity.Store, func(at segment.Position, text string) {
		c.inLog = append(c.inLog, logFinding{at, text})
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.log.Close()) }()
	whole := false // the tables were read to their end
	defer func() { c.tellLog(whole) }()
	c.db, err = tabledb.Open(tabledb.Config{FS: fs, Dir: storedir.TablesDir(fs, dir), ReadOnly: true})
	if err != nil {
		if errors.Is(err, storage.ErrCorrupt) {
			c.find("tables: the database does not open: %v", err)
			return nil
		}
		return err
	}
	defer func() { err = errors.Join(err, c.db.Close()) }()
	if err := c.smallKeys(); err != nil {
		return c.scanFailed(err)
	}
	if err := c.pages(ctx); err != nil {
		return c.scanFailed(err)
	}
	c.compareLive()
	whole = true
	return nil
}

// logFinding is something that is wrong with the log.
type logFinding struct {
	at   segment.Position
	text string
}

// tellLog tells what is wrong with the log. Damage in a segment to which no table refers, before all that a recovery reads, is none:
// nothing is there but garbage, which is written over when the segment is used again.
func (c *checker) tellLog(whole bool) {
	for _, f := range c.inLog {
		if whole && c.unneeded(f.at.Segment()) {
			c.report.Garbage++
			continue
		}
		c.find("log: %s", f.text)
	}
}

// unneeded reports whether nothing needs what is in a segment.
func (c *checker) unneeded(no segment.SegmentNo) bool {
	for _, s := range c.sets {
		if no >= s.from.Segment() || s.walked[no].Refs != 0 || s.stored[no].Refs != 0 {
			return false
		}
	}
	return len(c.sets) > 0
}

// scanFailed turns damage that ends a scan into a finding.
func (c *checker) scanFailed(err error) error {
	if errors.Is(err, storage.ErrCorrupt) {
		c.find("tables: %v; what comes after it was not checked", err)
		return nil
	}
	return err
}

// smallKeys decodes everything but the tables.
func (c *checker) smallKeys() error {
	each := func(kind byte, what string, fn func(k, v []byte) error) error {
		return c.db.Scan([]byte{kind}, []byte{kind + 1}, func(k, v []byte) (bool, error) {
			if err := fn(k, v); err != nil {
				c.find("tables: %s with key %x: %v", what, k, err)
			}
			return true, nil
		})
	}
	sealed := func(k, v []byte) error { _, err := table.Unseal(k, v); return err }
	return errors.Join(
		each(table.KeyGroup, "checkpoint", c.group),
		each(table.KeyStaged, "staged set", c.staged),
		each(table.KeyVolume, "volume", c.volume),
		each(table.KeyLive, "live count", c.live),
		each(table.KeyStable, "term or vote", sealed),
		each(table.KeyIncarnation, "incarnation", sealed),
		each(table.KeyPurge, "purge", c.purge),
		each(table.KeyCounter, "counter", sealed),
		each(table.KeyIndex, "index", c.index),
	)
}

func (c *checker) group(k, v []byte) error {
	key, ok := table.ParseGroupKey(k)
	r, err := table.DecodeGroupRecord(k, v)
	if err != nil || !ok {
		return fmt.Errorf("the key is valid: %v; %w", ok, err)
	}
	c.report.Groups++
	c.sets[r.Set] = newCheckedSet(key, r.From)
	return nil
}

func newCheckedSet(key segment.GroupKey, from segment.Position) *checkedSet {
	return &checkedSet{key: key, from: from, deleted: map[storage.VolumeID]bool{}, stored: table.Counts{}, walked: table.Counts{},
		mapped: map[storage.VolumeID]int64{}, heads: map[storage.VolumeID]int64{}}
}

// staged notes a set that a pull has left. Of a replica that is gone, or of a set that is gone or a replica's, it names nothing: the
// build before leaves such names, and the next start removes them.
func (c *checker) staged(k, v []byte) error {
	key, set, _, err := table.DecodeStaged(k, v)
	if err != nil || c.sets[set] != nil {
		return err
	}
	record, err := c.db.Get(table.GroupKey(table.KeyGroup, key))
	if err != nil || record == nil {
		return err
	}
	c.report.Staged++
	c.sets[set] = newCheckedSet(key, math.MaxUint64) // of the log it needs what it refers to
	return nil
}

func (c *checker) volume(k, v []byte) error {
	id, vol, err := table.StoredVolume(k, v)
	if err != nil {
		return err
	}
	if id != table.FloorVolume {
		c.report.Volumes++
	}
	set, _ := table.SetOf(k)
	if s := c.sets[set]; s != nil {
		s.deleted[id] = vol.Deleted()
		if vol.Mapped() >= 0 && !vol.Deleted() { // what a deleted one had goes step by step
			s.mapped[id] = vol.Mapped()
		}
	}
	return nil
}

// purge notes a volume whose tables are being removed; it may be forgotten already.
func (c *checker) purge(k, v []byte) error {
	if _, err := table.UnsealLen(k, v, table.VolumeKeyLen, table.AnyLen); err != nil {
		return err
	}
	set, _ := table.SetOf(k)
	if s := c.sets[set]; s != nil {
		s.deleted[table.ParseVolumeKey(k)] = true
	}
	return nil
}

func (c *checker) live(k, v []byte) error {
	set, no, n, err := table.DecodeLive(k, v)
	if err != nil {
		return err
	}
	if s := c.sets[set]; s != nil {
		s.stored[no] = n
		c.total += uint64(n.Own)
	}
	return nil
}

// pages decodes every page and reads every block, the versions of a page together.
func (c *checker) pages(ctx context.Context) error {
	var r run
	err := c.db.Scan([]byte{table.KeyPage}, []byte{table.KeyPage + 1}, func(k, v []byte) (bool, error) {
		if err := ctx.Err(); err != nil {
			return false, storage.E("check", storage.KindCanceled, "store "+c.cfg.Dir, err)
		}
		id, key, ok := table.ParsePageKey(k)
		s := c.sets[id]
		if ok && s == nil {
			return true, nil // left by a pull that was not installed; it is removed at the next start
		}
		if id != r.id || key.PageKey != r.key {
			if err := c.run(&r); err != nil {
				return false, err
			}
			r = run{id: id, set: s, key: key.PageKey}
		}
		var p table.Page
		if err := p.Decode(k, v); err != nil {
			c.find("tables: %v", err)
			r.broken = true
			return true, nil
		}
		c.report.Pages++
		r.versions = append(r.versions, &p)
		return true, nil
	})
	if err != nil {
		return err
	}
	return c.run(&r)
}

// run is a page in all its versions, newest first.
type run struct {
	id       table.SetID
	set      *checkedSet
	key      table.PageKey
	versions []*table.Page
	broken   bool // there was one that could not be decoded
}

// run looks at the versions of a page from the oldest on: what each inherits is in the one before, and all its own blocks are
// on the disk.
func (c *checker) run(r *run) error {
	if len(r.versions) > 0 {
		r.set.heads[r.key.Volume] += int64(bits.OnesCount64(r.versions[0].Bitmap()))
	}
	before := &table.Page{}
	for i, p := range slices.Backward(r.versions) {
		if p.Indexed && c.report.Identity.Format < storedir.PagesByEpoch {
			c.find("%s is in the form by epoch, in a store of format %d", r.name(p), c.report.Identity.Format)
		}
		read := p.Own
		if !r.broken {
			read |= c.chain(r, before, p, i == len(r.versions)-1)
		}
		if err := c.indexed(r, p); err != nil {
			return err
		}
		r.set.walked.Count(p, 1)
		c.blocks(r, p, read)
		before = p
	}
	return nil
}

// chain compares what a version has inherited with the version before, and makes it whole. It returns what lies elsewhere: a
// block that was moved below one version only.
func (c *checker) chain(r *run, before, p *table.Page, oldest bool) (elsewhere uint64) {
	if p.Chain != 0 && (oldest || p.Chain <= before.Chain) {
		c.find("%s needs %d older versions at most, and has more below it, or none", r.name(p), p.Chain)
	}
	if err := p.Inherit(before); err != nil {
		c.find("%s: %v", r.name(p), err)
	}
	for m := p.Stored() &^ p.Own; m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m)
		if p.Entries[i].Sum != before.Entries[i].Sum {
			c.find("%s has inherited block %d with checksum %08x, the version before has %08x", r.name(p), r.block(i), p.Entries[i].Sum, before.Entries[i].Sum)
		}
		if p.Entries[i] != before.Entries[i] {
			elsewhere |= 1 << i
		}
	}
	return elsewhere
}

func (r *run) name(p *table.Page) string {
	return fmt.Sprintf("group %s: page %d of extent %d of volume %d (epoch %d)", r.set.key, r.key.Page, r.key.Extent, r.key.Volume, p.Epoch)
}

func (r *run) block(i int) int { return int(r.key.Page)*table.BlocksPerPage + i }

// indexed wants the index key of a version that must have one.
func (c *checker) indexed(r *run, p *table.Page) error {
	if !p.Indexed || p.Epoch <= table.FirstEpoch || r.set.deleted[r.key.Volume] {
		return nil
	}
	key := table.AppendIndexKey(nil, r.id, table.VersionKey{PageKey: r.key, Epoch: p.Epoch})
	value, err := c.db.Get(key)
	if err == nil && value == nil {
		c.find("%s is not in the index", r.name(p))
	}
	return err
}

// index wants the version of an index key.
func (c *checker) index(k, v []byte) error {
	id, key, err := table.DecodeIndex(k, v)
	s := c.sets[id]
	if err != nil || s == nil || s.deleted[key.Volume] { // which goes in one step, when the last page has gone
		return err
	}
	value, err := c.db.Get(table.AppendPageKey(nil, id, key.PageKey, key.Epoch))
	if err == nil && value == nil {
		err = errors.New("there is no such page")
	}
	return err
}

// blocks reads blocks of a version.
func (c *checker) blocks(r *run, p *table.Page, which uint64) {
	if r.set.deleted[r.key.Volume] {
		return
	}
	for m := which; m != 0; m &= m - 1 {
		i := bits.TrailingZeros64(m)
		e := p.Entries[i]
		c.report.Blocks++
		if c.report.Blocks%4096 == 0 && c.cfg.Progress != nil {
			c.cfg.Progress(c.report.Blocks, c.total)
		}
		err := c.log.ReadAt(e.Position(), c.block[:])
		if err == nil && op.Sum(c.block[:]) != e.Sum {
			err = table.ErrSeal
		}
		if err != nil {
			c.report.Damaged++
			c.find("group %s: block %d of extent %d of volume %d (epoch %d) at %s: %v", r.set.key, r.block(i), r.key.Extent, r.key.Volume, p.Epoch, e.Position(), err)
		}
	}
}

func (c *checker) compareLive() {
	for _, s := range c.sets {
		for _, id := range slices.Sorted(maps.Keys(s.mapped)) {
			if s.mapped[id] != s.heads[id] {
				c.find("group %s: volume %s is said to have %d blocks, its tables map %d", s.key, id, s.mapped[id], s.heads[id])
			}
		}
		for _, no := range slices.Sorted(maps.Keys(union(s.stored, s.walked))) {
			if s.stored[no] != s.walked[no] {
				c.find("group %s: segment %s is said to hold %d live blocks and %d references to any, the tables have %d and %d", s.key, no,
					s.stored[no].Own, s.stored[no].Refs, s.walked[no].Own, s.walked[no].Refs)
			}
		}
	}
}

func union(a, b table.Counts) table.Counts {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}
