// Package recovery brings a cluster back in which a majority is lost for good, of the catalog's voters or of a group's. It works on the data
// directories of stopped nodes, one after the other: on the first one the catalog begins anew, the others follow.
//
// Every node that goes on gets the number of the recovery, and exchanges nothing with one that has another number or none. So it does not
// matter to them what becomes of the nodes that were lost. What they must not do is serve clients by themselves: nothing here keeps a
// majority of before, started with its old directories, from that.
//
// What is decided is in Plan, which changes nothing. A Recovery is used by one goroutine.
package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication"
	"github.com/storaged/storaged/replication/extent"
	"github.com/storaged/storaged/replication/segment"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
	"github.com/storaged/storaged/server/datadir"
)

// Config says what is to be recovered.
type Config struct {
	// Dir is the data directory of a stopped node.
	Dir datadir.Dir
	// Lost are the nodes that will not come back, by name or id; not with Follow.
	Lost []string
	// Follow is what the first node's recovery has said for the others (Recovery.Token); empty: this is the first.
	Follow string
	// From is a copy of the catalog to begin with; nil: what the node has. Not with Follow.
	From io.Reader
	// Promote are groups of which others survive, too, but no majority: this node's replica goes on, and the others are dropped.
	Promote []storage.GroupID
	// Force goes on although nodes answer, or nothing has lost its majority.
	Force bool
	// Dial connects to a peer address, to see whether a node runs. Default: TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Now is the time. Default: time.Now.
	Now func() time.Time
}

// dialPatience is how long a node is waited for before it counts as stopped.
const dialPatience = 2 * time.Second

// Recovery is an open data directory, with what is to become of it.
type Recovery struct {
	cfg    Config
	store  *extent.Store // nil: the node has none
	copy   *control.Copy
	from   *catalog.State // to begin with
	number uint32
	lost   []storage.NodeID
	groups []Group
	unread error // why the node's own copy of the catalog cannot be read
}

// Fate is what becomes of a group on this node.
type Fate string

// The fates.
const (
	// GoesOn: a majority of the voters is left.
	GoesOn Fate = "goes on"
	// Alone: this node's replica becomes the only voter.
	Alone Fate = "becomes the only voter"
	// Undecided: voters are left on other nodes, too, but no majority. One of them has to be chosen.
	Undecided Fate = "is not decided"
	// Without: this node's replica cannot go on by itself.
	Without Fate = "stays out of service"
)

// Group is a group that this node has a replica of.
type Group struct {
	replication.Survivor
	Fate Fate
	Left []storage.NodeID // the nodes whose voters are left, this one included
	Why  string           // of Without
}

// Open opens the data directory, and decides. It changes no more than a start of the node does. KindConflict: the node runs. KindInvalid: what was asked for is no
// recovery. The caller closes it.
func Open(cfg Config) (_ *Recovery, err error) {
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &Recovery{cfg: cfg, number: max(1, rand.Uint32())}
	if err := r.check(); err != nil {
		return nil, err
	}
	id, err := control.LoadIdentity(vfs.Default, cfg.Dir.Catalog())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	has, err := cfg.Dir.HasStore()
	if err == nil && has { // its lock is the node's
		r.store, err = extent.Open(extent.Config{FS: vfs.Default, Dir: cfg.Dir.Store(), Cluster: id.Cluster,
			Segment: segment.Config{FreeSegments: 1}}) // no more is written ahead than it takes
	}
	if err != nil {
		return nil, err
	}
	if r.copy, err = control.ReadCopy(cfg.Dir.Catalog()); err != nil {
		if cfg.From == nil && cfg.Follow == "" {
			return nil, storage.E("recover", storage.KindOf(err), "node "+id.Node.String(), fmt.Errorf("%w; begin on another node that is left, or with a backup (--from)", err))
		}
		r.unread = err
		if r.copy, err = control.UnreadCopy(cfg.Dir.Catalog()); err != nil {
			return nil, err
		}
	}
	if cfg.Follow == "" && id.Recovery != 0 && id.Unfinished {
		r.number = id.Recovery // an attempt before has begun: what it kept is found again
	}
	r.from = r.copy.State
	if cfg.From != nil {
		if r.from, err = control.ReadCopyFrom(cfg.From, id.Cluster); err != nil {
			return nil, err
		}
	}
	if cfg.Follow == "" {
		if r.lost, err = r.nodes(cfg.Lost); err != nil {
			return nil, err
		}
		if slices.Contains(r.lost, id.Node) {
			return nil, storage.E("recover", storage.KindInvalid, "node "+id.Node.String(), errors.New("it is itself among the lost nodes"))
		}
		r.lost = r.andRemoved(r.lost)
		if err := r.copy.MayBegin(r.from, r.lost, cfg.Now()); err != nil {
			return nil, err
		}
	}
	if err := r.missing(has); err != nil {
		return nil, err
	}
	if slices.Contains(r.lost, id.Node) {
		return nil, storage.E("recover", storage.KindInvalid, "node "+id.Node.String(), errors.New("it is itself among the lost nodes"))
	}
	return r, r.decide()
}

// missing returns an error if the catalog says that the node has a store, and the directory has none. Its groups would not be looked at.
func (r *Recovery) missing(has bool) error {
	self := r.copy.Identity.Node
	if has || r.from == nil || r.cfg.Force {
		return nil
	}
	for _, g := range r.from.Groups() {
		if m, on := g.OnNode(self); on && m.Role != storage.RolePulling {
			return storage.E("recover", storage.KindConflict, "directory "+string(r.cfg.Dir), fmt.Errorf("it has no store, and the catalog says that node %s holds group %s: is its file system "+
				"mounted? If the store is lost, --force goes on without it", r.name(self), g.ID))
		}
	}
	return nil
}

func (r *Recovery) check() error {
	invalid := func(text string) error { return storage.E("recover", storage.KindInvalid, "", errors.New(text)) }
	if r.cfg.Follow == "" {
		if len(r.cfg.Lost) == 0 && !r.cfg.Force {
			return invalid("say which nodes will not come back (--lost), or, on the second node and later, which recovery to follow (--follow)")
		}
		return nil
	}
	if len(r.cfg.Lost) > 0 || r.cfg.From != nil {
		return invalid("a node that follows takes the lost nodes, and the catalog, from the first one: leave --lost and --from out")
	}
	var err error
	r.number, r.lost, err = parseToken(r.cfg.Follow)
	return err
}

// Token is what other nodes need to follow.
func (r *Recovery) Token() string {
	ids := make([]string, len(r.lost))
	for i, id := range r.lost {
		ids[i] = id.String()
	}
	return fmt.Sprintf("%08x:%s", r.number, strings.Join(ids, ","))
}

// TokenBefore is Token of the recovery that has ended here before; empty if there was none, or this is to be another follower.
func (r *Recovery) TokenBefore() string {
	id := r.copy.Identity
	if r.cfg.Follow != "" || id.Recovery == 0 || id.Unfinished {
		return ""
	}
	before := Recovery{number: id.Recovery, lost: r.andRemoved(nil)}
	return before.Token()
}

func parseToken(text string) (number uint32, lost []storage.NodeID, err error) {
	fail := func() (uint32, []storage.NodeID, error) {
		return 0, nil, storage.E("recover", storage.KindInvalid, "--follow "+strconv.Quote(text), errors.New("it is not what the first node has said: eight digits, a colon, and numbers"))
	}
	first, rest, ok := strings.Cut(text, ":")
	n, err := strconv.ParseUint(first, 16, 32)
	if !ok || err != nil || len(first) != 8 || n == 0 {
		return fail()
	}
	for _, word := range strings.FieldsFunc(rest, func(c rune) bool { return c == ',' }) {
		id, err := strconv.ParseUint(word, 10, 32)
		if err != nil || id == 0 {
			return fail()
		}
		lost = append(lost, storage.NodeID(id))
	}
	return uint32(n), lost, nil
}

// andRemoved adds the nodes that were removed before: replicas of them may still vote, and will not come back either.
func (r *Recovery) andRemoved(lost []storage.NodeID) []storage.NodeID {
	for _, n := range r.from.Nodes() {
		if n.State == storage.NodeRemoved {
			lost = append(lost, n.ID)
		}
	}
	slices.Sort(lost)
	return slices.Compact(lost)
}

// nodes finds nodes by name or id in the copy to begin with. Those that were removed already count as lost in any case, and may be named again,
// as when the recovery is repeated.
func (r *Recovery) nodes(words []string) (ids []storage.NodeID, err error) {
	for _, word := range words {
		var found, removed []storage.NodeID
		for _, n := range r.from.Nodes() {
			name, byName := strings.CutPrefix(word, "name:")
			id, byID := strings.CutPrefix(word, "id:")
			switch is := !byID && n.Name == name || !byName && n.ID.String() == id; {
			case is && n.State == storage.NodeRemoved:
				removed = append(removed, n.ID)
			case is:
				found = append(found, n.ID)
			}
		}
		if len(found) == 0 && len(removed) > 0 {
			continue
		}
		if len(found) != 1 {
			return nil, storage.E("recover", storage.KindInvalid, "--lost "+strconv.Quote(word), fmt.Errorf("%d nodes of the catalog have that name or id; "+
				"they are %s; write name:%s or id:%s where a number is both", len(found), r.names(r.others()), word, word))
		}
		ids = append(ids, found[0])
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// others are the nodes of the catalog but this one, without removed ones.
func (r *Recovery) others() (ids []storage.NodeID) {
	if r.from == nil {
		return nil
	}
	for _, n := range r.from.Nodes() {
		if n.ID != r.copy.Identity.Node && n.State != storage.NodeRemoved {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

func (r *Recovery) name(id storage.NodeID) string {
	if r.from != nil {
		if n, ok := r.from.Node(id); ok {
			return n.Name
		}
	}
	return "id:" + id.String()
}

func (r *Recovery) names(ids []storage.NodeID) string {
	if len(ids) == 0 {
		return "none"
	}
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = r.name(id)
	}
	return strings.Join(names, ", ")
}

// decide finds what becomes of the groups that this node has a replica of.
func (r *Recovery) decide() error {
	if r.store == nil {
		return nil
	}
	survivors, err := replication.Survivors(r.store)
	if err != nil {
		return err
	}
	for _, s := range survivors {
		g := judge(s, r.lost, slices.Contains(r.cfg.Promote, s.Group))
		if g.Fate == Alone && r.replaced(s) {
			g.Fate, g.Why = Without, "the catalog names other replicas of it: this one was replaced, and may lack most of what the group held"
		}
		r.groups = append(r.groups, g)
	}
	slices.SortFunc(r.groups, func(a, b Group) int { return cmp.Compare(a.Group, b.Group) })
	for _, id := range r.cfg.Promote {
		if !slices.ContainsFunc(r.groups, func(g Group) bool { return g.Group == id && g.Fate == Alone }) {
			return storage.E("recover", storage.KindInvalid, "--promote "+id.String(), errors.New("this node has no voter of the group that could go on alone, or a majority is left"))
		}
	}
	return nil
}

// replaced reports whether the catalog knew the replica, and does not name it any more.
func (r *Recovery) replaced(s replication.Survivor) bool {
	if r.from == nil {
		return false
	}
	g, ok := r.from.Group(s.Group)
	_, named := g.Replica(s.Key)
	return ok && !named && s.Key.Incarnation <= g.LastIncarnation
}

// judge decides about one group. It is pure.
func judge(s replication.Survivor, lost []storage.NodeID, promote bool) Group {
	g := Group{Survivor: s}
	for _, v := range s.Voters {
		if !slices.Contains(lost, v.Node) {
			g.Left = append(g.Left, v.Node)
		}
	}
	switch {
	case s.Damaged != "":
		g.Fate, g.Why = Without, s.Damaged
	case len(g.Left) >= len(s.Voters)/2+1:
		g.Fate = GoesOn
	case !s.Votes():
		g.Fate, g.Why = Without, "it does not vote here, and may lack most of what the group held"
	case len(g.Left) == 1 || promote:
		g.Fate = Alone
	default:
		g.Fate = Undecided
	}
	return g
}

// needed reports whether anything has lost its majority.
func (r *Recovery) needed() bool {
	if r.copy.State == nil || r.copy.Lost(r.lost) {
		return true
	}
	if slices.ContainsFunc(r.groups, func(g Group) bool { return g.Fate == Alone || g.Fate == Undecided }) {
		return true
	}
	return r.from != nil && slices.ContainsFunc(r.from.Groups(), func(g storage.Group) bool {
		voters, left := r.left(g)
		return left < voters/2+1
	})
}

// left counts the voters of a group, as the catalog has them, and those of them that are not lost.
func (r *Recovery) left(g storage.Group) (voters, left int) {
	for _, m := range g.Replicas {
		if m.Role != storage.RoleVoter && m.Role != storage.RoleLeaving {
			continue
		}
		voters++
		if !slices.Contains(r.lost, m.Node) {
			left++
		}
	}
	return voters, left
}

// gone returns the groups that no voter is left of, and the volumes that have a part in one of them.
func (r *Recovery) gone() (groups []storage.GroupID, volumes []string) {
	if r.from == nil {
		return nil, nil
	}
	for _, g := range r.from.Groups() {
		if _, left := r.left(g); left == 0 {
			groups = append(groups, g.ID)
		}
	}
	for _, v := range r.from.VolumesByName() {
		if slices.ContainsFunc(v.Groups, func(id storage.GroupID) bool { return slices.Contains(groups, id) }) {
			volumes = append(volumes, v.Name)
		}
	}
	return groups, volumes
}

// answering returns which of the other nodes take connections at the address that is known of them.
func (r *Recovery) answering(ctx context.Context) (ids []storage.NodeID) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex // guards ids
	for _, id := range r.others() {
		n, _ := r.from.Node(id)
		if n.Addrs.Peer == "" {
			continue
		}
		wg.Go(func() {
			nc, err := r.cfg.Dial(ctx, n.Addrs.Peer)
			if err != nil {
				return
			}
			nc.Close()
			mu.Lock()
			defer mu.Unlock()
			ids = append(ids, id)
		})
	}
	wg.Wait()
	slices.Sort(ids)
	return ids
}

// Allowed returns why Do would not be right: KindConflict, with what to do.
func (r *Recovery) Allowed(ctx context.Context) error {
	if r.cfg.Force {
		return nil
	}
	conflict := func(format string, args ...any) error {
		return storage.E("recover", storage.KindConflict, "node "+r.copy.Identity.Node.String(), fmt.Errorf(format, args...))
	}
	if r.cfg.Follow != "" {
		return nil // the first node of the recovery may run already
	}
	if ids := r.answering(ctx); len(ids) > 0 {
		return conflict("other nodes run: %s. If they and this one are a majority, nothing has to be recovered: start this one as usual. Otherwise stop "+
			"them first. --force goes on if what answers at their addresses is something else", r.names(ids))
	}
	if !r.needed() {
		return conflict("without %s there is still a majority of everything: start the nodes as usual. --force begins anew all the same", r.names(r.lost))
	}
	return nil
}

// Do carries the recovery out. Again, also after an interruption, it goes on; a first node whose recovery has ended begins anew once more, under
// another number. A node that follows already keeps the catalog that it has got since: only groups are promoted. It returns where what the node
// had of the catalog is kept.
func (r *Recovery) Do(ctx context.Context) (kept string, err error) {
	if err := r.Allowed(ctx); err != nil {
		return "", err
	}
	dir := r.cfg.Dir.Catalog()
	id := r.copy.Identity
	follows := r.cfg.Follow != "" && id.Recovery == r.number && !id.Unfinished
	// Nobody may run with a group that goes on alone before the others are refused.
	if !follows {
		if err := control.MarkRecovery(dir, r.number); err != nil {
			return "", err
		}
	}
	for _, g := range r.groups {
		if g.Fate != Alone {
			continue
		}
		if err := replication.LetLeadAlone(ctx, r.store, r.copy.Identity.Node, g.Survivor); err != nil {
			return "", err
		}
	}
	if r.cfg.Follow != "" {
		return control.Follow(dir, r.number) // nothing, if it follows
	}
	return r.copy.Begin(dir, r.from, r.lost, r.number, r.cfg.Now())
}

// Close closes the store. What was done stays.
func (r *Recovery) Close() error {
	if r.store == nil {
		return nil
	}
	store := r.store
	r.store = nil
	return store.Close()
}
