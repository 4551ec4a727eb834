package volumetest

import (
	"fmt"
	"slices"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// closedWindows is how many closed sessions a group remembers per volume.
const closedWindows = 16

// group is one group's state machine. Cluster.mu guards it.
type group struct {
	volumes map[storage.VolumeID]*groupVolume
	extents map[extentKey]*extent
}

type extentKey struct {
	volume storage.VolumeID
	extent storage.ExtentIndex
}

type extent struct {
	data   [storage.ExtentSize]byte
	sums   [storage.BlocksPerExtent]uint32
	mapped [storage.BlocksPerExtent]bool
}

// groupVolume is what a group knows of a volume.
type groupVolume struct {
	epoch      storage.Epoch
	generation storage.Generation
	highest    storage.SessionID // opened or closed
	evicted    storage.SessionID // highest closed one that is forgotten
	live       map[storage.SessionID]*op.Window
	closed     []closedSession // the newest last
	deleted    bool
}

type closedSession struct {
	id     storage.SessionID
	window op.Window
}

func newGroup() *group {
	return &group{volumes: map[storage.VolumeID]*groupVolume{}, extents: map[extentKey]*extent{}}
}

func (g *group) volume(id storage.VolumeID) *groupVolume {
	v := g.volumes[id]
	if v == nil {
		v = &groupVolume{live: map[storage.SessionID]*op.Window{}}
		g.volumes[id] = v
	}
	return v
}

// apply decides and applies one operation, as every replica would.
func (g *group) apply(o op.Op, payload []byte) op.Result {
	v := g.volume(o.Volume)
	if v.deleted {
		return refuse(storage.KindNotFound, 0, "volume %d was deleted", o.Volume)
	}
	switch o.Kind {
	case op.OpenSession:
		return v.open(&o)
	case op.CloseSession:
		return v.close(o.Session)
	case op.SetEpoch:
		v.epoch = max(v.epoch, o.Epoch)
		return op.Result{}
	case op.SetGeneration:
		v.generation = max(v.generation, o.Generation)
		return op.Result{}
	case op.DeleteVolume:
		v.deleted = true
		return op.Result{}
	case op.Write, op.Clear:
		return g.mutate(v, &o, payload)
	}
	return refuse(storage.KindUnsupported, 0, "%v", o.Kind)
}

func (v *groupVolume) fenced(o *op.Op) (op.Result, bool) {
	switch {
	case o.Generation < v.generation:
		return refuse(storage.KindFenced, uint64(v.generation), "generation %d is over", o.Generation), true
	case o.Epoch < v.epoch:
		return refuse(storage.KindFenced, uint64(v.epoch), "epoch %d is over", o.Epoch), true
	}
	v.generation, v.epoch = o.Generation, o.Epoch
	return op.Result{}, false
}

func (v *groupVolume) open(o *op.Op) op.Result {
	if res, fenced := v.fenced(o); fenced {
		return res
	}
	if v.live[o.Session] != nil {
		return op.Result{Duplicate: true}
	}
	if o.Session <= v.highest {
		return refuse(storage.KindFenced, 0, "session %d is not above %d", o.Session, v.highest)
	}
	v.highest = o.Session
	v.live[o.Session] = new(op.Window)
	return op.Result{}
}

func (v *groupVolume) close(id storage.SessionID) op.Result {
	if w := v.live[id]; w != nil {
		delete(v.live, id)
		v.keepClosed(id, *w)
		window := *w
		return op.Result{Window: &window}
	}
	for i := range v.closed {
		if v.closed[i].id == id {
			window := v.closed[i].window
			return op.Result{Duplicate: true, Window: &window}
		}
	}
	if id <= v.evicted {
		return refuse(storage.KindConflict, 0, "what session %d applied is no longer known", id)
	}
	v.keepClosed(id, op.Window{})
	return op.Result{Window: new(op.Window)}
}

func (v *groupVolume) keepClosed(id storage.SessionID, w op.Window) {
	v.highest = max(v.highest, id)
	if len(v.closed) == closedWindows {
		v.evicted = max(v.evicted, v.closed[0].id)
		v.closed = slices.Delete(v.closed, 0, 1)
	}
	v.closed = append(v.closed, closedSession{id, w})
}

func (g *group) mutate(v *groupVolume, o *op.Op, payload []byte) op.Result {
	w := v.live[o.Session]
	if w == nil {
		return refuse(storage.KindFenced, 0, "session %d is not open", o.Session)
	}
	if res, fenced := v.fenced(o); fenced {
		return res
	}
	switch {
	case w.Applied(o.Seq):
		return op.Result{Duplicate: true}
	case !w.InWindow(o.Seq):
		return refuse(storage.KindInvalid, 0, "number %d is outside the window that begins at %d", o.Seq, w.Low)
	}
	w.Mark(o.Seq)
	if o.Kind == op.Clear {
		g.clear(o)
	} else {
		g.write(o, payload)
	}
	return op.Result{}
}

func (g *group) write(o *op.Op, payload []byte) {
	key := extentKey{o.Volume, o.Extent}
	e := g.extents[key]
	if e == nil {
		e = new(extent)
		g.extents[key] = e
	}
	copy(e.data[o.Offset:], payload)
	first, n := o.Blocks()
	aligned := o.Aligned()
	for i := range n {
		b := first + i
		e.mapped[b] = true
		if aligned {
			e.sums[b] = o.SumAt(i)
		} else {
			e.sums[b] = op.Sum(e.data[b*storage.BlockSize:][:storage.BlockSize])
		}
	}
}

func (g *group) clear(o *op.Op) {
	e := g.extents[extentKey{o.Volume, o.Extent}]
	if e == nil {
		return
	}
	clear(e.data[o.Offset : o.Offset+o.Length])
	first, n := o.Blocks()
	for b := first; b < first+n; b++ {
		e.mapped[b], e.sums[b] = false, 0
	}
}

// checkRead returns the refusal of a read, as the leader would.
func (g *group) checkRead(volume storage.VolumeID, generation storage.Generation) error {
	v := g.volume(volume)
	switch {
	case v.deleted:
		return storage.E("read", storage.KindNotFound, fmt.Sprintf("volume %d", volume), nil)
	case generation < v.generation:
		return storage.E("read", storage.KindFenced, fmt.Sprintf("volume %d", volume), fmt.Errorf("generation %d is over", generation))
	}
	return nil
}

func (g *group) read(req *op.ReadRequest) (*op.ReadData, error) {
	if err := g.checkRead(req.Volume, req.Generation); err != nil {
		return nil, err
	}
	first, n := req.Blocks()
	header := op.ReadResponse{Sums: make([]uint32, n), Holes: make([]bool, n)}
	e := g.extents[extentKey{req.Volume, req.Extent}]
	holes := 0
	for i := range n {
		if e == nil || !e.mapped[first+i] {
			header.Holes[i] = true
			holes++
		} else {
			header.Sums[i] = e.sums[first+i]
		}
	}
	if holes == n {
		return op.NewReadData(header, nil, nil), nil
	}
	payload := slices.Clone(e.data[first*storage.BlockSize:][:n*storage.BlockSize])
	return op.NewReadData(header, payload, nil), nil
}

func (g *group) status(req *op.StatusRequest) ([]op.Run, error) {
	if err := g.checkRead(req.Volume, req.Generation); err != nil {
		return nil, err
	}
	e := g.extents[extentKey{req.Volume, req.Extent}]
	var runs []op.Run
	for at, end := req.Offset, req.Offset+req.Length; at < end; {
		next := min(end, at-at%storage.BlockSize+storage.BlockSize)
		flags := op.RunHole | op.RunZero
		if e != nil && e.mapped[at/storage.BlockSize] {
			flags = op.RunAllocated
		}
		if k := len(runs); k > 0 && runs[k-1].Flags == flags {
			runs[k-1].Length += next - at
		} else {
			runs = append(runs, op.Run{Length: next - at, Flags: flags})
		}
		at = next
	}
	return runs, nil
}

// mappedAtOnce is how many extents an answer names at most, so that small volumes need several.
const mappedAtOnce = 3

func (g *group) mapped(req *op.MappedRequest) (op.MappedResponse, error) {
	if err := g.checkRead(req.Volume, req.Generation); err != nil {
		return op.MappedResponse{}, err
	}
	var found []storage.ExtentIndex
	for key, e := range g.extents {
		if key.volume == req.Volume && req.First <= key.extent && key.extent < req.End && slices.Contains(e.mapped[:], true) {
			found = append(found, key.extent)
		}
	}
	slices.Sort(found)
	if len(found) > mappedAtOnce {
		return op.MappedResponse{Next: found[mappedAtOnce], Extents: found[:mappedAtOnce]}, nil
	}
	return op.MappedResponse{Next: req.End, Extents: found}, nil
}

func refuse(kind storage.Kind, detail uint64, format string, args ...any) op.Result {
	return op.Result{Kind: kind, Detail: detail, Text: fmt.Sprintf(format, args...)}
}
