package replication

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/extent/room"
	"github.com/storaged/storaged/replication/op"
)

// TestFullDiskManyLeaders: six nodes lead a group each, all of which have a voter on the same disk, which is slow: it says that
// twice its reserve is free, and then nothing is durable there for a while. The six write as much as they may. The disk is never full,
// whatever was on its way when it goes on; nobody waits for the room that a client's error would give; and everything that was
// acknowledged is there in the end.
//
// Guards: what is on its way in ledger.Book (Reserve and settleLocked): without it the six write all they have, and the disk is filled to
// the last byte. The division by the leaders in diskRoom.grant: the same. Each was taken out once, and this failed.
func TestFullDiskManyLeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const leaders, slow, segment, reserve = 6, 7, 256 << 10, 4 << 20
		h := newHarness(t, slow)
		for id, n := range h.nodes {
			capacity := int64(1 << 30)
			if id == slow {
				capacity = 2*reserve + 3*segment // what is open and written ahead is not free
			}
			h.store = func(c *extent.Config) {
				c.SegmentBytes, c.CapacityBytes, c.ReserveBytes, c.MemTableBytes, c.CheckpointBytes = segment, capacity, reserve, 64<<10, 1<<20
			}
			n.start()
		}
		defer h.close()
		var clients []*client
		for g := range storage.GroupID(leaders) {
			first := storage.NodeID(g + 1)
			h.bootstrapVoters(g+1, first, first%leaders+1, slow)
			h.eventually("its own node leads the group", func() bool {
				l := h.leaderOf(g + 1)
				if l != 0 && l != first {
					_ = h.nodes[l].replicas.TransferLeadership(context.Background(), g+1, string(ServerID(storeID(first), storage.Incarnation(first))), first)
				}
				return l == first
			})
			clients = append(clients, h.open(g+1, storage.VolumeID(g+1), storage.SessionID(g+1)))
		}
		time.Sleep(2 * time.Second) // everybody has heard of the room
		disk := h.nodes[slow].store
		if free := disk.Space().FreeBytes; free < 2*reserve-4*segment || free > 2*reserve+4*segment {
			t.Fatalf("%d bytes are free at first", free)
		}
		least := disk.Space().FreeBytes
		watch := func(d time.Duration) {
			for until := time.Now().Add(d); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
				least = min(least, disk.Space().FreeBytes)
			}
		}
		h.nodes[slow].stall.begin()
		acked := make([]int, leaders)
		var writers sync.WaitGroup
		for g, c := range clients {
			writers.Go(func() { acked[g] = c.fill(leaders*reserve/(16<<10), 20*time.Second) })
		}
		time.Sleep(900 * time.Millisecond) // less than after which a disk hangs
		h.nodes[slow].stall.end()
		watch(30 * time.Second)
		writers.Wait()
		watch(10 * time.Second)
		t.Logf("written: %v pieces of 16 KiB; at least %d of %d bytes were free, %d are kept in reserve", acked, least, 2*reserve, reserve)
		if need := disk.Space().NeedBytes; least < need/2 {
			t.Errorf("%d bytes were free: less than half of the %d that the disk needs for itself", least, need)
		}
		if err := disk.Failed(); err != nil {
			t.Error(err)
		}
		all := 0
		for g, c := range clients {
			all += acked[g]
			for i := range acked[g] {
				if got := c.readPiece(i); got[0] != byte(i) || got[len(got)-1] != byte(i) {
					t.Fatalf("group %d: piece %d is lost", g+1, i)
				}
			}
		}
		if all*16<<10 < reserve/2 {
			t.Errorf("only %d pieces of 16 KiB were written: half of the room above the reserve is not used", all)
		}
	})
}

const pieceBytes = 16 << 10

// fill writes piece after piece, each at a place of its own and sixteen at a time, until one is refused for good, most are written, or the time
// is over. It returns how many of the first were all acknowledged.
func (c *client) fill(most int, within time.Duration) int {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for first := 0; first < most; first += 16 {
		errs := make([]error, 16)
		var batch sync.WaitGroup
		for i := range errs {
			data := block(byte(first + i))
			for len(data) < pieceBytes {
				data = append(data, data...)
			}
			o := c.writeOp(uint32((first+i)%256)*pieceBytes, data)
			o.Extent = storage.ExtentIndex((first + i) / 256)
			batch.Go(func() {
				for ctx.Err() == nil {
					leader := c.h.leaderOf(c.group)
					if leader == 0 {
						time.Sleep(20 * time.Millisecond)
						continue
					}
					_, errs[i] = c.h.nodes[leader].replicas.Propose(ctx, c.group, [][]byte{o.AppendHeader(nil), data})
					if k := storage.KindOf(errs[i]); errs[i] == nil || k != storage.KindUnavailable && k != storage.KindNotLeader {
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
			})
		}
		batch.Wait()
		for i, err := range errs {
			if err != nil || ctx.Err() != nil {
				return first + i
			}
		}
	}
	return most
}

func (c *client) readPiece(i int) []byte {
	c.h.t.Helper()
	var out []byte
	c.h.eventually(fmt.Sprintf("read of piece %d", i), func() bool {
		leader := c.h.leaderOf(c.group)
		if leader == 0 {
			return false
		}
		d, err := c.h.nodes[leader].replicas.Read(context.Background(), c.group, op.ReadRequest{Volume: c.volume, Extent: storage.ExtentIndex(i / 256),
			Offset: uint32(i%256) * pieceBytes, Length: pieceBytes, Epoch: op.HeadEpoch})
		if err != nil {
			return false
		}
		defer d.Release()
		out = append([]byte(nil), d.Payload...)
		return true
	})
	return out
}

// TestGrants: what leaders are told keeps all of them together from filling the disk, and an earlier release, which compares it with its
// reserve and subtracts nothing, writes when there is room above that, and not otherwise.
func TestGrants(t *testing.T) {
	const mib = 1 << 20
	const reserve, need = 1024 * mib, 960 * mib
	for _, leaders := range []storage.NodeID{1, 3, 30} {
		for _, free := range []int64{0, 1, reserve/2 - 1, reserve / 2, reserve - 1, reserve, reserve + 1, reserve + mib, reserve + 100*mib, 10 * reserve, 1 << 62} {
			for _, exhausted := range []bool{false, true} {
				r := diskRoom{begun: time.Now()}
				for n := range leaders {
					r.hear(n + 1)
				}
				r.note(room.Space{FreeBytes: free, ReserveBytes: reserve, NeedBytes: need, Exhausted: exhausted}, 5*mib, time.Now())
				told := r.grant(5 * mib)
				if (told < 0) != exhausted {
					t.Fatalf("%d free: exhausted %v, told %d", free, exhausted, told)
				}
				told = max(told, ^told)
				k := int64(leaders)
				switch {
				case told > free, k == 1 && told != free && free < 1<<61, (told >= reserve) != (free >= reserve), (told >= reserve/2) != (free >= reserve/2):
					t.Errorf("%d leaders, %d free: told %d", k, free, told)
				case free >= reserve && (told-reserve) > (free-need)/k:
					t.Errorf("%d leaders, %d free: together they may send %d, of %d that the disk does not need itself", k, free, k*(told-reserve), free-need)
				case free >= reserve/2 && free < reserve && k*(told-reserve/2) > free-reserve/2:
					t.Errorf("%d leaders, %d free: together they may overwrite %d", k, free, k*(told-reserve/2))
				}
			}
		}
	}
}

// TestGrantsFollow: what was appended since the disk was looked at is not told as free, a leader counts at once, and one that is heard no more
// does not count for long.
//
// Guards, in grant: appended-since; in note: the age. Each was taken out once, and this failed.
func TestGrantsFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := diskRoom{begun: time.Now()}
		space := room.Space{FreeBytes: 3000, ReserveBytes: 1000, NeedBytes: 600}
		want := func(appended, told int64) {
			t.Helper()
			if got := r.grant(appended); got != told {
				t.Errorf("told %d, want %d", got, told)
			}
		}
		r.note(space, 100, time.Now())
		want(100, 3000)
		want(50, 3000) // an older figure than the look's
		want(600, 2500)
		r.hear(1)
		want(600, 2500)
		r.hear(2)
		want(600, 1000+(2500-600)/2)
		time.Sleep(leaderAge - time.Second)
		r.hear(2)
		time.Sleep(2 * time.Second)
		r.note(space, 600, time.Now())
		want(600, 3000)
		time.Sleep(leaderAge)
		r.note(space, 600, time.Now())
		want(700, 2900)
	})
}

// TestWaitsForASlowFollower: a write that a voter has said room for, but for what is on its way there, waits, and is not refused as if the
// store were full. What comes to nothing gives its room back, and what is proposed has reserved what it takes.
//
// Guards, in propose: Release. It was taken out once, and this failed.
func TestWaitsForASlowFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, c, leader := three(t)
		defer h.close()
		in := h.nodes[leader].replicas.mustGroup(1).inst.Load()
		follower := storage.NodeID(1)
		if leader == 1 {
			follower = 2
		}
		id := string(ServerID(storeID(follower), storage.Incarnation(follower)))
		c.write(0, block(1))
		res, _, ok := in.log.book.Reserve(1<<40, -1<<41, 1<<41, false) // a write that is far larger than any
		if !ok {
			t.Fatal("not reserved")
		}
		in.log.book.Told(id, 2<<30)
		o := c.writeOp(0, block(2))
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := h.nodes[leader].replicas.mustGroup(1).propose(ctx, append(o.AppendHeader(nil), block(2)...))
		if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "on their way") {
			t.Errorf("%v", err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := h.nodes[leader].replicas.Propose(context.Background(), 1, [][]byte{o.AppendHeader(nil), block(2)})
			done <- err
		}()
		time.Sleep(time.Second)
		in.log.book.Release(res)
		if err := <-done; err != nil {
			t.Errorf("with less on its way: %v", err)
		}
		g := h.nodes[leader].replicas.mustGroup(1)
		hold, err := g.ranges.acquire(context.Background(), 7, 0, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		o = c.writeOp(0, block(3))
		c.seq--
		if _, err := g.propose(ctx, append(o.AppendHeader(nil), block(3)...)); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("the blocks are another's: %v", err)
		}
		g.ranges.release(hold)
		c.do(op.Op{Kind: op.OpenSession, Volume: 7, Session: 2}, nil) // no write
		o = c.writeOp(storage.BlockSize+100, block(4))
		data := append(o.AppendHeader(nil), block(4)...)
		if _, err := g.propose(context.Background(), data); err != nil { // merged to two blocks
			t.Error(err)
		}
		if e, err := g.extents.Log().Get(g.extents.Log().LastIndex()); err != nil || len(e.Data) != proposedBytes(&o, len(data)) {
			t.Errorf("%d bytes were reserved, and %d proposed: %v", proposedBytes(&o, len(data)), len(e.Data), err)
		}
		time.Sleep(5 * time.Second)
		if out := h.nodes[leader].replicas.ledger.Outstanding(storeID(leader)); out != 0 {
			t.Errorf("%d bytes are reserved, and nobody proposes any", out)
		}
		if out := h.nodes[leader].replicas.ledger.Outstanding(storeID(follower)); out != 0 {
			t.Errorf("%d bytes are on their way to a follower that has all", out)
		}
	})
}
