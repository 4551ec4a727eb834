package extent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/bits"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/segment"
)

// CheckConfig says what to check.
type CheckConfig struct {
	FS  vfs.FS
	Dir string
	// Finding is called with each thing that is wrong, in words. It must not be nil.
	Finding func(text string)
	// Progress is called now and then with the blocks that were read, and about how many there are. May be nil.
	Progress func(done, total uint64)
}

// CheckReport says what was looked at.
type CheckReport struct {
	Identity               Identity
	Groups, Volumes        int
	Pages, Blocks, Damaged uint64 // table pages and blocks read; blocks that could not be, or failed their checksum
	Findings               int
}

// Check verifies a stopped store: every record of the log, every key of the tables, the live counts, and every block.
// It writes nothing. Findings are told by CheckConfig.Finding; the error says why the check could not be made:
// KindConflict when the store is in use, KindNotFound, KindUnsupported, KindIO, KindCanceled.
func Check(ctx context.Context, cfg CheckConfig) (CheckReport, error) {
	c := &checker{cfg: cfg, sets: map[setID]*checkedSet{}}
	err := c.run(ctx)
	return c.report, err
}

type checker struct {
	cfg    CheckConfig
	report CheckReport
	meta   *meta
	log    *segment.Reader
	sets   map[setID]*checkedSet // of groups
	total  uint64
}

// checkedSet is what the keys of one group's table set say.
type checkedSet struct {
	key     segment.GroupKey
	deleted map[storage.VolumeID]bool
	stored  counts // live counts as stored
	walked  counts // as the tables say

	mapped, heads map[storage.VolumeID]int64 // blocks of newest versions: as stored where that is known, as the tables say
	last          pageKey                    // whose newest version was counted; pages come in order, newest versions first
}

func (c *checker) find(format string, args ...any) {
	c.report.Findings++
	c.cfg.Finding(fmt.Sprintf(format, args...))
}

func (c *checker) run(ctx context.Context) (err error) {
	fs, dir := c.cfg.FS, c.cfg.Dir
	if c.report.Identity, err = ReadIdentity(fs, dir); err != nil {
		return err
	}
	lock, err := lockDir(fs, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	c.log, err = segment.Check(fs, fs.PathJoin(dir, logDirName), c.report.Identity.Store, func(text string) { c.find("log: %s", text) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.log.Close()) }()
	mc := Config{FS: fs, Dir: dir, Logger: slog.New(slog.DiscardHandler)}
	mc.setDefaults()
	if c.meta, err = openMeta(&mc, metaDir(fs, dir), true, func(error) {}); err != nil {
		if errors.Is(err, storage.ErrCorrupt) {
			c.find("tables: the database does not open: %v", err)
			return nil
		}
		return err
	}
	defer func() { err = errors.Join(err, c.meta.close()) }()
	if err := c.smallKeys(); err != nil {
		return c.scanFailed(err)
	}
	if err := c.pages(ctx); err != nil {
		return c.scanFailed(err)
	}
	c.compareLive()
	return nil
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
		return c.meta.scan([]byte{kind}, []byte{kind + 1}, func(k, v []byte) (bool, error) {
			if err := fn(k, v); err != nil {
				c.find("tables: %s with key %x: %v", what, k, err)
			}
			return true, nil
		})
	}
	sealed := func(k, v []byte) error { _, err := unseal(k, v); return err }
	return errors.Join(
		each(keyGroup, "checkpoint", c.group),
		each(keyVolume, "volume", c.volume),
		each(keyLive, "live count", c.live),
		each(keyStable, "term or vote", sealed),
		each(keyIncarnation, "incarnation", sealed),
		each(keyPurge, "purge", c.purge),
		each(keyCounter, "counter", sealed),
	)
}

func (c *checker) group(k, v []byte) error {
	key, ok := parseGroupKey(k)
	r, err := decodeGroupRecord(k, v)
	if err != nil || !ok {
		return fmt.Errorf("the key is valid: %v; %w", ok, err)
	}
	c.report.Groups++
	c.sets[r.set] = &checkedSet{key: key, deleted: map[storage.VolumeID]bool{}, stored: counts{}, walked: counts{},
		mapped: map[storage.VolumeID]int64{}, heads: map[storage.VolumeID]int64{}}
	return nil
}

func (c *checker) volume(k, v []byte) error {
	vol, err := decodeVolume(k, v)
	if err != nil || len(k) != 17 {
		return fmt.Errorf("%d bytes of key; %w", len(k), err)
	}
	id := parseVolumeKey(k)
	if id != floorVolume {
		c.report.Volumes++
	}
	if s := c.sets[setID(be.Uint64(k[1:]))]; s != nil {
		s.deleted[id] = vol.deleted
		if vol.mapped != unknownMapped && !vol.deleted { // what a deleted one had goes step by step
			s.mapped[id] = vol.mapped
		}
	}
	return nil
}

// purge notes a volume whose tables are being removed; it may be forgotten already.
func (c *checker) purge(k, v []byte) error {
	if _, err := unseal(k, v); err != nil || len(k) != 17 {
		return fmt.Errorf("%d bytes of key; %w", len(k), err)
	}
	if s := c.sets[setID(be.Uint64(k[1:]))]; s != nil {
		s.deleted[parseVolumeKey(k)] = true
	}
	return nil
}

func (c *checker) live(k, v []byte) error {
	set, no, n, err := decodeLive(k, v)
	if err != nil {
		return err
	}
	if s := c.sets[set]; s != nil {
		s.stored[no] = n
		c.total += uint64(n)
	}
	return nil
}

// pages decodes every page and reads every block.
func (c *checker) pages(ctx context.Context) error {
	block := make([]byte, storage.BlockSize)
	return c.meta.scan([]byte{keyPage}, []byte{keyPage + 1}, func(k, v []byte) (bool, error) {
		if err := ctx.Err(); err != nil {
			return false, storage.E("check", storage.KindCanceled, "store "+c.cfg.Dir, err)
		}
		set, key, ok := parsePageKey(k)
		s := c.sets[set]
		if ok && s == nil {
			return true, nil // left by a pull that was not installed; it is removed at the next start
		}
		p, err := decodePage(bytes.Clone(k), v)
		if err != nil {
			c.find("tables: %v", err)
			return true, nil
		}
		c.report.Pages++
		c.page(s, key, p, block)
		return true, nil
	})
}

func (c *checker) page(s *checkedSet, key versionKey, p *page, block []byte) {
	if s.last != key.pageKey {
		s.last = key.pageKey
		s.heads[key.volume] += int64(bits.OnesCount64(p.bitmap()))
	}
	for i := range p.entries {
		e := p.entries[i]
		if !e.mapped() {
			continue
		}
		s.walked.bump(e.segment, 1)
		if s.deleted[key.volume] {
			continue
		}
		c.report.Blocks++
		if c.report.Blocks%4096 == 0 && c.cfg.Progress != nil {
			c.cfg.Progress(c.report.Blocks, c.total)
		}
		err := c.log.ReadAt(e.position(), block)
		if err == nil && op.Sum(block) != e.crc {
			err = errSeal
		}
		if err != nil {
			c.report.Damaged++
			c.find("group %s: block %d of extent %d of volume %d (epoch %d) at %s: %v", s.key, int(key.page)*blocksPerPage+i,
				key.extent, key.volume, key.epoch, e.position(), err)
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
				c.find("group %s: segment %s is said to hold %d live blocks, the tables refer to %d", s.key, no, s.stored[no], s.walked[no])
			}
		}
	}
}

func union(a, b counts) counts {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}
