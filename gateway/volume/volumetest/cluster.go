package volumetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/op"
)

// Cluster is the fake.
type Cluster struct {
	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // copies on their way

	mu        sync.Mutex // guards everything below and all groups
	groups    map[storage.GroupID]*group
	volumes   map[string]*catalogVolume
	sessions  map[storage.SessionID]catalogSession
	instances map[storage.NodeID]int
	fault     func(Call) Fault
	onApply   func(Applied)
	calls     int
	nextID    storage.VolumeID
	nextSess  storage.SessionID
	attached  map[storage.AttachmentID]*catalogAttachment
	nextAtt   storage.AttachmentID
	changed   chan struct{} // closed and replaced at each change of a volume
}

// Applied is one operation that a group decided.
type Applied struct {
	Group  storage.GroupID
	Op     op.Op
	Result op.Result
}

type catalogVolume struct {
	volume.VolumeState
	id     storage.VolumeID
	groups []storage.GroupID
}

type catalogSession struct {
	volume     string
	node       storage.NodeID
	instance   int
	readOnly   bool
	attachment storage.AttachmentID
}

// catalogAttachment is the attachment of a node, whatever its instance.
type catalogAttachment struct {
	volume  string
	node    storage.NodeID
	options volume.OpenOptions
	refs    int
}

// New returns a cluster without volumes.
func New() *Cluster {
	c := &Cluster{
		groups:    map[storage.GroupID]*group{},
		volumes:   map[string]*catalogVolume{},
		sessions:  map[storage.SessionID]catalogSession{},
		instances: map[storage.NodeID]int{},
		attached:  map[storage.AttachmentID]*catalogAttachment{},
		changed:   make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close drops what is still on its way and waits for the cluster's goroutines.
func (c *Cluster) Close() {
	c.cancel()
	c.wg.Wait()
}

// SetFault makes every call from now on ask script what happens to it; nil ends that. The script is called without
// locks, concurrently.
func (c *Cluster) SetFault(script func(Call) Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = script
}

// OnApply makes every group tell fn what it decided, in its order. fn must not call the cluster.
func (c *Cluster) OnApply(fn func(Applied)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onApply = fn
}

// CreateVolume creates a volume that is striped over groups, of generation 1 and epoch 1.
func (c *Cluster) CreateVolume(name string, sizeBytes int64, groups ...storage.GroupID) storage.VolumeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextID++
	c.volumes[name] = &catalogVolume{
		VolumeState: volume.VolumeState{Revision: 1, SizeBytes: sizeBytes, Epoch: 1, Generation: 1},
		id:          c.nextID, groups: slices.Clone(groups),
	}
	for _, g := range groups {
		if c.groups[g] == nil {
			c.groups[g] = newGroup()
		}
	}
	return c.nextID
}

// change edits a volume in the catalog and then, with o, in each of its groups.
func (c *Cluster) change(name string, edit func(*catalogVolume), o *op.Op) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.volumes[name]
	edit(v)
	v.Revision++
	close(c.changed)
	c.changed = make(chan struct{})
	for _, g := range v.groups {
		if o != nil {
			o.Volume, o.Epoch, o.Generation = v.id, v.Epoch, v.Generation
			c.groups[g].apply(*o, nil)
		}
	}
}

// Resize changes a volume's size.
func (c *Cluster) Resize(name string, sizeBytes int64) {
	c.change(name, func(v *catalogVolume) { v.SizeBytes = sizeBytes }, nil)
}

// SetLimits changes a volume's limits.
func (c *Cluster) SetLimits(name string, l storage.VolumeLimits) {
	c.change(name, func(v *catalogVolume) { v.Limits = l }, nil)
}

// Delete deletes a volume, whoever uses it.
func (c *Cluster) Delete(name string) {
	c.change(name, func(v *catalogVolume) { v.Deleted = true }, &op.Op{Kind: op.DeleteVolume})
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.volumes, name)
}

// TakeOver ends every attachment of a volume and raises its generation, in the catalog and then in every group.
func (c *Cluster) TakeOver(name string) {
	c.change(name, func(v *catalogVolume) {
		v.Generation++
		for id, a := range c.attached {
			if a.volume == name {
				delete(c.attached, id)
			}
		}
	}, &op.Op{Kind: op.SetGeneration})
}

// Attachments returns the ids of a volume's attachments, in ascending order.
func (c *Cluster) Attachments(name string) []storage.AttachmentID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []storage.AttachmentID
	for id, a := range c.attached {
		if a.volume == name {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// RaiseEpoch raises a volume's epoch, as a snapshot does.
func (c *Cluster) RaiseEpoch(name string) {
	c.change(name, func(v *catalogVolume) { v.Epoch++ }, &op.Op{Kind: op.SetEpoch})
}

// Expire closes every session of a volume, in the catalog and in every group, as if heartbeats had stopped.
func (c *Cluster) Expire(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.volumes[name]
	for id, s := range c.sessions {
		if s.volume == name {
			delete(c.sessions, id)
		}
	}
	for _, g := range v.groups {
		gv := c.groups[g].volume(v.id)
		for id := range gv.live {
			gv.close(id)
		}
	}
}

// ExpireIn closes every session of a volume in one group only.
func (c *Cluster) ExpireIn(name string, g storage.GroupID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	gv := c.groups[g].volume(c.volumes[name].id)
	for id := range gv.live {
		gv.close(id)
	}
}

// Sessions returns the catalog's live sessions, in ascending order.
func (c *Cluster) Sessions() []storage.SessionID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.sessions))
}

// LiveIn returns the sessions of a volume that are open in a group, in ascending order.
func (c *Cluster) LiveIn(name string, g storage.GroupID) []storage.SessionID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.groups[g].volume(c.volumes[name].id).live))
}

// Node is the cluster as one instance of one node's gateway sees it. It implements volume.Cluster.
type Node struct {
	cluster  *Cluster
	id       storage.NodeID
	instance int
}

var _ volume.Cluster = (*Node)(nil)

// Start returns the cluster for a new instance of a node's gateway: sessions that earlier instances of the same node
// have left are its predecessors.
func (c *Cluster) Start(id storage.NodeID) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.instances[id]++
	return &Node{cluster: c, id: id, instance: c.instances[id]}
}

// Propose implements volume.Cluster.
func (n *Node) Propose(ctx context.Context, g storage.GroupID, data [][]byte) (op.Result, error) {
	c := n.cluster
	script := c.script()
	if script == nil {
		if err := ctx.Err(); err != nil {
			return op.Result{}, Unavailable(err.Error())
		}
		return c.deliver(g, data)
	}
	copied := [][]byte{bytes.Join(data, nil)}
	o, _, err := op.Decode(copied[0])
	if err != nil {
		return op.Result{}, err
	}
	f := script(Call{Method: Propose, Node: n.id, Number: c.number(), Group: g, Op: o})
	if f.Refuse != storage.KindNone {
		return op.Result{Kind: f.Refuse, Text: "scripted"}, nil
	}
	if f.Duplicate != 0 {
		c.later(f.Duplicate, nil, func() { _, _ = c.deliver(g, copied) })
	}
	return answer(ctx, c, f, func() (op.Result, error) { return c.deliver(g, copied) })
}

// deliver applies an operation in its group.
func (c *Cluster) deliver(g storage.GroupID, data [][]byte) (op.Result, error) {
	o, n, err := op.DecodeHeader(data[0])
	if err != nil {
		return op.Result{}, err
	}
	payload := data[0][n:]
	if len(data) > 1 {
		payload = data[1]
	}
	if o.Kind == op.Write {
		if err := o.Verify(payload); err != nil {
			return op.Result{}, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	gr := c.groups[g]
	if gr == nil {
		return op.Result{}, Unavailable(fmt.Sprintf("no group %d", g))
	}
	res := gr.apply(o, payload)
	if c.onApply != nil {
		c.onApply(Applied{Group: g, Op: o, Result: res})
	}
	return res, nil
}

// Read implements volume.Cluster.
func (n *Node) Read(ctx context.Context, g storage.GroupID, req op.ReadRequest) (*op.ReadData, error) {
	c := n.cluster
	f := c.ask(Call{Method: Read, Node: n.id, Group: g, Read: req})
	data, err := answer(ctx, c, f, func() (*op.ReadData, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.groups[g].read(&req)
	})
	if err != nil {
		return nil, err
	}
	if f.FlipBit && len(data.Payload) > 0 {
		data.Payload[len(data.Payload)/2] ^= 4
	}
	return data, nil
}

// Status implements volume.Cluster.
func (n *Node) Status(ctx context.Context, g storage.GroupID, req op.StatusRequest) ([]op.Run, error) {
	c := n.cluster
	return answer(ctx, c, c.ask(Call{Method: Status, Node: n.id, Group: g}), func() ([]op.Run, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.groups[g].status(&req)
	})
}

// MappedExtents implements volume.Cluster.
func (n *Node) MappedExtents(ctx context.Context, g storage.GroupID, req op.MappedRequest) (op.MappedResponse, error) {
	c := n.cluster
	return answer(ctx, c, c.ask(Call{Method: MappedExtents, Node: n.id, Group: g}), func() (op.MappedResponse, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.groups[g].mapped(&req)
	})
}

// Attach implements volume.Cluster.
func (n *Node) Attach(ctx context.Context, name string, options volume.OpenOptions) (storage.Attachment, error) {
	c := n.cluster
	return answer(ctx, c, c.ask(Call{Method: Attach, Node: n.id}), func() (storage.Attachment, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		v := c.volumes[name]
		if v == nil {
			return storage.Attachment{}, notFound(name)
		}
		at := storage.Attachment{Volume: v.id}
		for id, a := range c.attached {
			switch {
			case a.volume != name:
			case a.node == n.id && a.options == options:
				at.ID = id
				a.refs++
			case !a.options.Access.Beside(options.Access):
				return storage.Attachment{}, storage.E("attach", storage.KindConflict, "volume "+name, errors.New("attached by node "+a.node.String()))
			}
		}
		if at.ID == 0 {
			c.nextAtt++
			at.ID = c.nextAtt
			c.attached[at.ID] = &catalogAttachment{volume: name, node: n.id, options: options, refs: 1}
		}
		return at, nil
	})
}

// Detach implements volume.Cluster.
func (n *Node) Detach(ctx context.Context, _ string, at storage.Attachment, closed bool) error {
	c := n.cluster
	return c.after(ctx, c.ask(Call{Method: Detach, Node: n.id, Closed: closed}), func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if a := c.attached[at.ID]; a != nil {
			a.refs--
			if a.refs == 0 {
				delete(c.attached, at.ID)
			}
		}
		return nil
	})
}

// OpenSession implements volume.Cluster.
func (n *Node) OpenSession(ctx context.Context, name string, req volume.SessionRequest) (volume.SessionInfo, error) {
	c := n.cluster
	return answer(ctx, c, c.ask(Call{Method: OpenSession, Node: n.id}), func() (volume.SessionInfo, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		v := c.volumes[name]
		if v == nil {
			return volume.SessionInfo{}, notFound(name)
		}
		if a := c.attached[req.Attachment]; a == nil || a.volume != name {
			return volume.SessionInfo{}, storage.E("open session", storage.KindFenced, "volume "+name, errors.New(lost))
		}
		info := volume.SessionInfo{
			ID: c.sessionLocked(n, name, req), Volume: v.id, SizeBytes: v.SizeBytes, Groups: slices.Clone(v.groups), Epoch: v.Epoch, Generation: v.Generation,
			Limits: v.Limits, Revision: v.Revision,
		}
		for id, s := range c.sessions {
			sibling := s.instance == n.instance && s.readOnly != req.ReadOnly
			if s.volume == name && s.node == n.id && id != info.ID && !sibling {
				info.Predecessors = append(info.Predecessors, id)
			}
		}
		slices.Sort(info.Predecessors)
		return info, nil
	})
}

// sessionLocked returns the session that the same request has opened before, or a new one.
func (c *Cluster) sessionLocked(n *Node, name string, req volume.SessionRequest) storage.SessionID {
	want := catalogSession{volume: name, node: n.id, instance: n.instance, readOnly: req.ReadOnly, attachment: req.Attachment}
	for id, s := range c.sessions {
		if s == want && id > req.After {
			return id
		}
	}
	c.nextSess++
	c.sessions[c.nextSess] = want
	return c.nextSess
}

// CloseSession implements volume.Cluster.
func (n *Node) CloseSession(ctx context.Context, id storage.SessionID) error {
	c := n.cluster
	return c.after(ctx, c.ask(Call{Method: CloseSession, Node: n.id}), func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.sessions, id)
		return nil
	})
}

// WatchVolume implements volume.Cluster.
func (n *Node) WatchVolume(ctx context.Context, id storage.VolumeID, attachment storage.AttachmentID, after uint64) (volume.VolumeState, error) {
	c := n.cluster
	if err := c.after(ctx, c.ask(Call{Method: WatchVolume, Node: n.id}), func() error { return nil }); err != nil {
		return volume.VolumeState{}, err
	}
	for {
		c.mu.Lock()
		changed := c.changed
		var found *catalogVolume
		for _, v := range c.volumes {
			if v.id == id {
				found = v
			}
		}
		if found == nil {
			c.mu.Unlock()
			return volume.VolumeState{}, notFound(id.String())
		}
		st := found.VolumeState
		if c.attached[attachment] == nil {
			st.Lost = lost
		}
		c.mu.Unlock()
		if st.Revision > after {
			return st, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return volume.VolumeState{}, Unavailable(ctx.Err().Error())
		case <-c.ctx.Done():
			return volume.VolumeState{}, Unavailable("closed")
		}
	}
}

// Volume implements volume.Cluster.
func (n *Node) Volume(_ context.Context, name string) (storage.Volume, error) {
	c := n.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.volumes[name]
	if v == nil {
		return storage.Volume{}, notFound(name)
	}
	return storage.Volume{Name: name, ID: v.id, SizeBytes: v.SizeBytes}, nil
}

// Volumes implements volume.Cluster.
func (n *Node) Volumes(context.Context) ([]storage.Volume, error) {
	c := n.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	var infos []storage.Volume
	for name, v := range c.volumes {
		infos = append(infos, storage.Volume{Name: name, ID: v.id, SizeBytes: v.SizeBytes})
	}
	slices.SortFunc(infos, func(a, b storage.Volume) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}

func (c *Cluster) script() func(Call) Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fault
}

func (c *Cluster) number() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return c.calls
}

func (c *Cluster) ask(call Call) Fault {
	script := c.script()
	if script == nil {
		return Fault{}
	}
	call.Number = c.number()
	return script(call)
}

// answer runs deliver as the fault says, and returns what the caller gets to see: the request may come to its end long after
// its caller has given up.
func answer[T any](ctx context.Context, c *Cluster, f Fault, deliver func() (T, error)) (none T, err error) {
	if f.Err != nil {
		return none, f.Err
	}
	if err := ctx.Err(); err != nil {
		return none, Unavailable(err.Error())
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	run := func() {
		value, err := deliver()
		done <- result{value, err}
	}
	var r result
	if f.Delay == 0 && f.Hold == nil {
		run()
		r = <-done
	} else {
		c.later(f.Delay, f.Hold, run)
		select {
		case r = <-done:
		case <-ctx.Done():
			return none, Unavailable(ctx.Err().Error())
		case <-c.ctx.Done():
			return none, Unavailable("closed")
		}
	}
	switch {
	case f.LoseAnswer:
		return none, Unavailable("the answer was lost")
	case r.err != nil:
		return none, r.err
	}
	return r.value, nil
}

// after is answer for a request that has no answer but its error.
func (c *Cluster) after(ctx context.Context, f Fault, deliver func() error) error {
	_, err := answer(ctx, c, f, func() (struct{}, error) { return struct{}{}, deliver() })
	return err
}

// later runs fn after the delay and after hold was closed (if it is not nil), unless the cluster is closed before.
func (c *Cluster) later(delay time.Duration, hold <-chan struct{}, fn func()) {
	c.wg.Go(func() {
		if clock.Sleep(c.ctx, delay) != nil {
			return
		}
		if hold != nil {
			select {
			case <-hold:
			case <-c.ctx.Done():
				return
			}
		}
		fn()
	})
}

const lost = "another holder has the volume"

func notFound(name string) error {
	return storage.E("find", storage.KindNotFound, "volume "+name, nil)
}
