package replication

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/extent/table"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/replication/runner"
	"golang.org/x/sync/errgroup"
)

// A replica that cannot be brought up from the log pulls a manifest: what a group held at one applied index, extent
// by extent. The source keeps the manifest's tables and pins its segments until the puller is done or has been silent
// for manifestSilence, and the log from there on for a while longer (behind). Both give way to clients (pace.Pace). The messages are laid out in docs/format/raft.md.

const (
	manifestSilence  = extent.ManifestSilence
	pullStallTimeout = 10 * time.Second // a pull without an answer for so long has failed
	pullPatience     = time.Minute      // and one that gets no further for so long, whatever it waits for
	pullRoomPatience = 20 * time.Second // a pull waits so long for room; the source keeps what the manifest names, less than manifestSilence
	pullRoomLook     = time.Second
	pullExtentsLimit = 512 // extent versions of one answer
	pullParallel     = 4   // extents that one pull fetches at the same time
	maxOpenManifests = 16

	maxManifestNameBytes = 128

	manifestReplyBytes = 4 << 20                      // a part of the small state, or a list of versions
	tableReplyBytes    = storage.BlocksPerExtent * 16 // an encoded table, about
)

// pullServer serves manifests to other nodes.
type pullServer struct {
	replicas *Replicas

	mu     sync.Mutex
	next   uint64                   // guarded by mu, like all below
	open   map[string]*openManifest // by name
	begun  int                      // being opened; begun + len(open) <= maxOpenManifests
	closed bool
}

// openManifest is a manifest that someone pulls.
type openManifest struct {
	g     *group
	m     *extent.Manifest
	name  string
	by    storage.NodeID // 0: a follower that Raft sent to it
	timer *time.Timer    // closes it after manifestSilence
}

func newPullServer(rs *Replicas) *pullServer {
	s := &pullServer{replicas: rs, open: map[string]*openManifest{}}
	rs.cfg.Peers.Handle(methodManifest, peer.Terms{From: peer.Members, Order: peer.Concurrent}, s.serveManifest)
	rs.cfg.Peers.Handle(methodTable, peer.Terms{From: peer.Members, Order: peer.Concurrent}, s.serveTable)
	rs.cfg.Peers.Handle(methodBlocks, peer.Terms{From: peer.Members, Order: peer.Concurrent, SumsInAnswers: true}, s.serveBlocks)
	return s
}

// add opens a manifest of a group for a node, and gives it a name.
func (s *pullServer) add(g *group, by storage.NodeID) (*openManifest, error) {
	s.mu.Lock()
	full := s.closed || s.begun+len(s.open) >= maxOpenManifests
	if !full {
		s.begun++
	}
	s.mu.Unlock()
	if full {
		return nil, storage.E("open manifest", storage.KindUnavailable, "group "+g.id.String(),
			fmt.Errorf("%d manifests are being pulled already", maxOpenManifests))
	}
	m, err := g.extents.OpenManifest()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun--
	if err != nil {
		return nil, err
	}
	if s.closed {
		m.Close()
		return nil, storage.E("open manifest", storage.KindUnavailable, "group "+g.id.String(), errors.New("the node stops"))
	}
	s.next++
	o := &openManifest{g: g, m: m, by: by, name: fmt.Sprintf("%d-%d-%d", g.id, m.Index, s.next)}
	s.open[o.name] = o
	o.timer = time.AfterFunc(manifestSilence, func() { s.remove(o.name) })
	return o, nil
}

func (s *pullServer) find(name string) (*extent.Manifest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[name]
	if o == nil {
		return nil, storage.E("pull", storage.KindNotFound, "manifest "+name, errors.New("it is not open any more: start over"))
	}
	o.timer.Reset(manifestSilence)
	return o.m, nil
}

func (s *pullServer) remove(name string) {
	s.mu.Lock()
	o := s.open[name]
	delete(s.open, name)
	s.mu.Unlock()
	if o != nil {
		o.timer.Stop()
		o.g.behind.add(pulledManifest{o.m.Index, o.by}, time.Now())
		o.g.keepLog() // before the manifest lets the log go
		o.m.Close()
	}
}

func (s *pullServer) close() {
	s.mu.Lock()
	s.closed = true
	names := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	for _, n := range names {
		s.remove(n)
	}
}

// openManifest is snapshotStore's way to a manifest for a lagging follower.
func (g *group) openManifest() (*extent.Manifest, string, func(), error) {
	o, err := g.node.pulls.add(g, 0)
	if err != nil {
		return nil, "", nil, err
	}
	return o.m, o.name, func() { g.node.pulls.remove(o.name) }, nil
}

// What MethodManifest asks for.
const (
	manifestOpen    = 1 + iota // -> name in the header, table.ManifestHeader in the payload
	manifestState              // part -> that part of the small state
	manifestExtents            // after (one version, or none for the beginning) -> the next versions
	manifestHeader             // -> table.ManifestHeader of an open one in the payload
	manifestClose
)

func (s *pullServer) serveManifest(in *peer.Inbound) {
	name, args, err := decodePull(in.Header[min(1, len(in.Header)):], 1)
	var header, payload []byte
	if err == nil {
		header, payload, err = s.manifest(in.Context(), in.From, in.Group, in.Header[0], name, args[0], in.Payload)
	}
	in.Answer(header, payload, err)
}

func (s *pullServer) manifest(ctx context.Context, by storage.NodeID, id storage.GroupID, what uint8, name string, arg uint32, after []byte) (header, payload []byte, err error) {
	switch what {
	case manifestOpen:
		g, err := s.replicas.group(id)
		if err != nil {
			return nil, nil, err
		}
		// A young group has no checkpoint yet, and a new one makes the way to the log's end shorter.
		if err := g.checkpoint(ctx); err != nil && g.extents.Checkpointed().Index == 0 {
			return nil, nil, storage.E("open manifest", storage.KindUnavailable, "group "+id.String(), err)
		}
		o, err := s.add(g, by)
		if err != nil {
			return nil, nil, err
		}
		return []byte(o.name), o.m.ManifestHeader.Append(nil), nil
	case manifestClose:
		s.remove(name)
		return nil, nil, nil
	}
	m, err := s.find(name)
	if err != nil {
		return nil, nil, err
	}
	switch what {
	case manifestHeader:
		payload = m.ManifestHeader.Append(nil)
	case manifestState:
		payload, err = m.StatePart(int(arg))
	case manifestExtents:
		var from table.Ref
		if len(after) > 0 {
			if from, err = decodeRef(after); err != nil {
				return nil, nil, err
			}
		}
		var refs []table.Ref
		refs, err = m.Extents(from, int(min(arg, pullExtentsLimit)))
		payload = table.AppendRefs(nil, refs)
	default:
		err = storage.E("serve manifest", storage.KindInvalid, "", fmt.Errorf("unknown request %d", what))
	}
	return nil, payload, err
}

// appendPull appends what every request names: a manifest, and numbers.
func appendPull(b []byte, name string, args ...uint32) []byte {
	b = append(binary.LittleEndian.AppendUint16(b, uint16(len(name))), name...)
	for _, n := range args {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return b
}

// decodePull is the inverse of appendPull for the given number of arguments.
func decodePull(b []byte, args int) (name string, numbers []uint32, err error) {
	end := 2
	if len(b) >= end {
		end += int(binary.LittleEndian.Uint16(b))
	}
	if end > 2+maxManifestNameBytes || len(b) != end+4*args {
		return "", nil, storage.E("decode manifest request", storage.KindInvalid, "", fmt.Errorf("%d bytes: a length is out of range", len(b)))
	}
	for at := end; at < len(b); at += 4 {
		numbers = append(numbers, binary.LittleEndian.Uint32(b[at:]))
	}
	return string(b[2:end]), numbers, nil
}

func decodeRef(b []byte) (table.Ref, error) {
	refs, err := table.DecodeRefs(b)
	if err == nil && len(refs) != 1 {
		err = storage.E("decode", storage.KindInvalid, "", fmt.Errorf("%d extent versions where one is wanted", len(refs)))
	}
	if err != nil {
		return table.Ref{}, err
	}
	return refs[0], nil
}

// serveTable answers with the table of one version; serveBlocks with some of its blocks.
func (s *pullServer) serveTable(in *peer.Inbound) {
	s.serveVersion(in, func(m *extent.Manifest, ref table.Ref, _, _ uint32) ([]byte, error) { return m.Table(ref) })
}

func (s *pullServer) serveBlocks(in *peer.Inbound) {
	s.serveVersion(in, func(m *extent.Manifest, ref table.Ref, first, n uint32) ([]byte, error) {
		if g, err := s.replicas.group(in.Group); err == nil {
			if err := g.disk.pulls.Wait(in.Context(), int64(n)*storage.BlockSize); err != nil {
				return nil, err
			}
		}
		return m.Blocks(ref, int(first), int(n), s.elsewhere(in))
	})
}

// elsewhere gets blocks that this node's disk does not give back from another replica, if the group is still here.
func (s *pullServer) elsewhere(in *peer.Inbound) extent.Elsewhere {
	g, err := s.replicas.group(in.Group)
	if err != nil {
		return nil
	}
	return g.elsewhere(in.Context())
}

func (s *pullServer) serveVersion(in *peer.Inbound, read func(m *extent.Manifest, ref table.Ref, first, n uint32) ([]byte, error)) {
	name, args, err := decodePull(in.Header, 2)
	var first, n uint32
	if err == nil {
		if first, n = args[0], args[1]; first > storage.BlocksPerExtent || n > storage.BlocksPerExtent {
			err = storage.E("serve manifest", storage.KindInvalid, "", fmt.Errorf("%d blocks from %d", n, first))
		}
	}
	var ref table.Ref
	if err == nil {
		ref, err = decodeRef(in.Payload)
	}
	var m *extent.Manifest
	if err == nil {
		m, err = s.find(name)
	}
	var payload []byte
	if err == nil {
		payload, err = read(m, ref, first, n)
	}
	in.Answer(nil, payload, err)
}

// puller pulls one manifest from one node into a staging area.
type puller struct {
	g       *group
	from    storage.NodeID
	name    string
	staging *extent.Staging
	steps   atomic.Uint64 // answers of the source, and steps of the staging
}

// pull brings the named manifest of another node (or, without a name, one that is opened now) into a staging area and
// returns the area's name. The replica is what it was until that is installed. req, if given, says what the leader
// wants installed. It takes as long as it takes: KindUnavailable when it gets no further for pullPatience.
func (g *group) pull(ctx context.Context, from storage.NodeID, name string, req *raft.InstallSnapshotRequest) (id string, err error) {
	p := &puller{g: g, from: from, name: name}
	ctx, end := p.watch(ctx)
	defer func() { err = end(err) }()
	header, err := p.open(ctx)
	if err != nil {
		return "", err
	}
	defer p.close()
	if req != nil && (header.Index != req.LastLogIndex || header.Term != req.LastLogTerm) {
		return "", storage.E("pull", storage.KindInvalid, "group "+g.id.String(), fmt.Errorf(
			"the manifest is of index %d, the leader's request of %d", header.Index, req.LastLogIndex))
	}
	if !runner.ValidConfiguration(header.Config) {
		return "", storage.E("pull", storage.KindCorrupt, "group "+g.id.String(), errors.New("the manifest's configuration cannot be read"))
	}
	if p.staging, err = g.disk.store.Stage(g.extents.Key(), header); err != nil {
		return "", err
	}
	g.pullTotal.Store(int64(header.TotalBytes))
	g.pulled.Store(0)
	defer g.pullTotal.Store(0)
	if err = p.all(ctx, header); err == nil {
		err = p.stage(ctx, func() (err error) {
			id, err = p.staging.Commit(ctx)
			return err
		})
	}
	if err != nil {
		p.staging.Keep() // whatever ended it: what has come was checked, and the next pull shares from it
		return "", err
	}
	g.logger.Info("manifest pulled", "from", from, "index", header.Index, "bytes", g.pulled.Load())
	return id, nil
}

// errStalled ends a pull that gets no further.
var errStalled = errors.New("it got no further")

// watch returns a context that ends when the pull has made no step for pullPatience, and what ends the watch: that names the reason of the
// pull's error.
func (p *puller) watch(ctx context.Context) (watched context.Context, end func(error) error) {
	watched, cancel := context.WithCancelCause(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		steps, since := p.steps.Load(), time.Now()
		for clock.Sleep(watched, pullPatience/12) == nil {
			if n := p.steps.Load(); n != steps {
				steps, since = n, time.Now()
			} else if time.Since(since) >= pullPatience {
				cancel(errStalled)
			}
		}
	}()
	return watched, func(err error) error {
		stalled := errors.Is(context.Cause(watched), errStalled)
		cancel(nil)
		<-gone
		if err == nil || !stalled {
			return err
		}
		return storage.E("pull", storage.KindUnavailable, "group "+p.g.id.String(),
			fmt.Errorf("%w for %v, and is begun again: %w", errStalled, pullPatience, err))
	}
}

// step notes that the pull gets on.
func (p *puller) step() {
	p.steps.Add(1)
	p.g.pullSteps.Add(1)
}

// stage is a step of the staging, for which it waits for room.
func (p *puller) stage(ctx context.Context, step func() error) error {
	err := withRoom(ctx, step)
	if err == nil {
		p.step()
	}
	return err
}

// open opens a manifest at the source, or asks for the header of the one that is open under the name.
func (p *puller) open(ctx context.Context) (header table.ManifestHeader, err error) {
	what := uint8(manifestHeader)
	if p.name == "" {
		what = manifestOpen
	}
	name, data, err := p.ask(ctx, what, 0, nil)
	if err != nil {
		return header, err
	}
	p.name = cmp.Or(p.name, string(name))
	return table.DecodeManifestHeader(data)
}

func (p *puller) close() {
	ctx, cancel := context.WithTimeout(p.g.node.ctx, time.Second)
	defer cancel()
	_, _, _ = p.ask(ctx, manifestClose, 0, nil) // the source closes it by itself otherwise
}

func (p *puller) ask(ctx context.Context, what uint8, arg uint32, payload []byte) (header, answer []byte, err error) {
	return p.call(ctx, methodManifest, appendPull([]byte{what}, p.name, arg), payload, manifestReplyBytes)
}

// call is one request, which fails when there is no answer for pullStallTimeout.
// replyBytes is how large the answer may become: the source is not asked for more than it may buffer.
func (p *puller) call(ctx context.Context, m peer.Method, header, payload []byte, replyBytes int) (h, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, pullStallTimeout)
	defer cancel()
	req := &peer.Request{Method: m, Group: p.g.id, Header: header, Payload: [][]byte{payload}, ReplyBytes: replyBytes,
		SumsInAnswer: m == methodBlocks}
	resp, err := p.g.node.cfg.Peers.Call(ctx, p.from, peer.Bulk, req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Release()
	p.step()
	return bytes.Clone(resp.Header), bytes.Clone(resp.Payload), nil
}

// all pulls the small state and every extent version that is not here already.
func (p *puller) all(ctx context.Context, header table.ManifestHeader) error {
	for i := range header.StateParts {
		_, part, err := p.ask(ctx, manifestState, i, nil)
		if err == nil {
			err = p.staging.PutState(int(i), part)
		}
		if err != nil {
			return err
		}
	}
	var after []byte
	for {
		_, list, err := p.ask(ctx, manifestExtents, pullExtentsLimit, after)
		if err != nil {
			return err
		}
		refs, err := table.DecodeRefs(list)
		if err != nil || len(refs) == 0 {
			return err
		}
		after = table.AppendRefs(nil, refs[len(refs)-1:])
		if err := p.versions(ctx, refs); err != nil {
			return err
		}
	}
}

// versions pulls those of the listed versions that are wanted, several extents at a time and the versions of one
// extent in order.
func (p *puller) versions(ctx context.Context, refs []table.Ref) error {
	var want []table.Ref
	err := p.stage(ctx, func() (err error) {
		want, err = p.staging.Want(ctx, refs)
		return err
	})
	if err != nil {
		return err
	}
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.SetLimit(pullParallel)
	for first := 0; first < len(want); {
		end := first + 1
		for end < len(want) && want[end].Volume == want[first].Volume && want[end].Extent == want[first].Extent {
			end++
		}
		ofOneExtent := want[first:end]
		tasks.Go(func() error {
			for _, ref := range ofOneExtent {
				if err := p.version(ctx, ref); err != nil {
					return err
				}
			}
			return nil
		})
		first = end
	}
	return tasks.Wait()
}

func (p *puller) version(ctx context.Context, ref table.Ref) error {
	encoded := table.AppendRefs(nil, []table.Ref{ref})
	sums, err := p.ofVersion(ctx, methodTable, encoded, 0, 0)
	if err != nil {
		return err
	}
	var missing []table.BlockRun
	err = p.stage(ctx, func() (err error) {
		missing, err = p.staging.PutTable(ctx, ref, sums)
		return err
	})
	if err != nil {
		return err
	}
	for _, run := range missing {
		for first := run.First; first < run.First+run.N; first += table.MaxRun {
			n := min(table.MaxRun, run.First+run.N-first)
			blocks, err := p.ofVersion(ctx, methodBlocks, encoded, first, n)
			if err == nil {
				err = p.g.disk.pulls.Wait(ctx, int64(len(blocks)))
			}
			if err == nil {
				err = p.stage(ctx, func() error { return p.staging.PutBlocks(ctx, ref, first, blocks) })
			}
			if err != nil {
				return err
			}
			p.g.pulled.Add(int64(len(blocks)))
			p.g.disk.pulled.Add(int64(len(blocks)))
		}
	}
	return nil
}

// withRoom repeats a step of a pull that the store refuses because it would take of the reserve, until there is room or pullRoomPatience
// is over. Compaction may make some meanwhile.
func withRoom(ctx context.Context, step func() error) error {
	err := step()
	for begun := time.Now(); errors.Is(err, storage.ErrNoSpace) && time.Since(begun) < pullRoomPatience; err = step() {
		if clock.Sleep(ctx, pullRoomLook) != nil {
			return err
		}
	}
	return err
}

func (p *puller) ofVersion(ctx context.Context, m peer.Method, ref []byte, first, n int) ([]byte, error) {
	header := appendPull(nil, p.name, uint32(first), uint32(n))
	replyBytes := tableReplyBytes
	if m == methodBlocks {
		replyBytes = n * storage.BlockSize
	}
	_, answer, err := p.call(ctx, m, header, ref, replyBytes)
	return answer, err
}
