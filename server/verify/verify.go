// Package verify checks one volume at all its replicas, a step at a time (ADR 48). Each replica of a group reads what it holds of some extents
// from its disk, compares it with its checksums, and has mended what is damaged. It says what the extents hold, too, which must be the same at
// all of them.
//
// A step keeps nothing: where the next goes on is in its answer, so whoever asks may stop at any time, and go on at another node. It does
// not decide what is damaged, which the replicas do, nor does it repair replicas that differ, which people do.
//
// A Verifier may be used concurrently. What a store does for several of them it does one after the other.
package verify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/replication/op"
	"github.com/storaged/storaged/replication/peer"
	"github.com/storaged/storaged/replication/peer/rpc"
	"github.com/storaged/storaged/server/catalog"
)

// Verifier takes steps of verifications.
type Verifier struct {
	Catalog Catalog
	// Ask asks the replica of a group on a node, which may be this one.
	Ask func(ctx context.Context, node storage.NodeID, r Request) (op.VerifyAnswer, error)
	// Propose has the group's leader run an operation.
	Propose func(ctx context.Context, group storage.GroupID, o op.Op) error
}

// Catalog is what a Verifier asks of the catalog. *control.Controller implements it, and says what it promises.
type Catalog interface {
	Read(ctx context.Context, fn func(*catalog.State)) error
}

// Request is a request to one replica.
type Request struct {
	Group   storage.GroupID    `json:"group"`
	Replica storage.ReplicaKey `json:"replica"`
	op.VerifyRequest
}

// maxRequestBytes and maxAnswerBytes bound a request and an answer before they are decoded. An answer has op.MaxVerifyExtents extents at most.
const maxRequestBytes, maxAnswerBytes = 4 << 10, 64 << 10

var method = rpc.Method[Request, op.VerifyAnswer]{Name: "verify", Number: 60, Lane: peer.Bulk, From: peer.Members,
	MaxRequestBytes: maxRequestBytes, MaxAnswerBytes: maxAnswerBytes}

// Replicas are those of a node. *replication.Replicas implements it, and says what it promises.
type Replicas interface {
	Verify(ctx context.Context, group storage.GroupID, replica storage.ReplicaKey, r op.VerifyRequest) (op.VerifyAnswer, error)
}

// Register enters the method by which other nodes ask this one, and returns how to ask others.
func Register(peers *peer.Transport, replicas Replicas) (ask func(context.Context, storage.NodeID, Request) (op.VerifyAnswer, error)) {
	method.Handle(peers, func(ctx context.Context, _ rpc.Sender, r Request) (op.VerifyAnswer, error) {
		return replicas.Verify(ctx, r.Group, r.Replica, r.VerifyRequest)
	})
	return func(ctx context.Context, node storage.NodeID, r Request) (op.VerifyAnswer, error) {
		return method.Call(ctx, peers, node, r)
	}
}

// replica is one copy of a group.
type replica struct {
	storage.Replica
	name string // of its node
}

// step is one step on its way.
type step struct {
	*Verifier
	volume   storage.Volume
	group    storage.GroupID
	replicas []replica
	out      api.Verified
}

// VerifyVolume is that of api.Cluster.
func (v *Verifier) VerifyVolume(ctx context.Context, s api.VerifyStep) (api.Verified, error) {
	w := step{Verifier: v}
	if err := w.find(ctx, s); err != nil || w.out.Done {
		return w.out, err
	}
	end := storage.ExtentIndex((w.volume.SizeBytes + storage.ExtentSize - 1) / storage.ExtentSize)
	answers, ok, err := w.askAll(ctx, op.VerifyRequest{Volume: w.volume.ID, First: min(s.From, end), End: end, RateBytes: s.RateBytes})
	if err != nil || !ok {
		for i := range answers { // it is done, and the next answer does not tell of it
			w.out.Mended += answers[i].Mended
		}
		w.out.Group, w.out.From = s.Group, s.From
		return w.out, err
	}
	next := end
	for i := range answers {
		next = min(next, answers[i].Next)
		w.note(i, &answers[i])
	}
	if err := w.compare(ctx, answers, next); err != nil {
		return api.Verified{}, err
	}
	w.out.Group, w.out.From = s.Group, next
	if next == end {
		w.out.Group, w.out.From = s.Group+1, 0
		w.out.Done = w.out.Group == len(w.volume.Groups)
	}
	return w.out, nil
}

// find finds the volume, the group and its replicas.
func (w *step) find(ctx context.Context, s api.VerifyStep) error {
	var found, known bool
	err := w.Catalog.Read(ctx, func(c *catalog.State) {
		if w.volume, found = c.VolumeByName(s.Name); !found || s.Group >= len(w.volume.Groups) {
			return
		}
		var g storage.Group
		if g, known = c.Group(w.volume.Groups[s.Group]); !known {
			return
		}
		for _, r := range g.Replicas {
			// One that is on its way into the group holds less, and one on its way out is no copy that counts.
			if r.Role != storage.RoleVoter || slices.Contains(s.Skip, api.VerifyReplica{Group: g.ID, Node: r.Node}) {
				continue
			}
			n, _ := c.Node(r.Node)
			w.replicas = append(w.replicas, replica{r, n.Name})
		}
	})
	subject := "volume " + s.Name
	switch {
	case err != nil:
		return catalog.NotKnown("verify", subject, err)
	case !found || s.ID != 0 && w.volume.ID != s.ID:
		return storage.E("verify", storage.KindNotFound, subject, errors.New("there is no such volume; `storagectl volume list` shows those there are"))
	case s.Group >= len(w.volume.Groups):
		w.out.Done = true
	case !known:
		return storage.E("verify", storage.KindInternal, subject, fmt.Errorf("its group %s is not in the catalog", w.volume.Groups[s.Group]))
	default:
		w.group = w.volume.Groups[s.Group]
	}
	w.out.ID = w.volume.ID
	return nil
}

// tell adds a finding, of the replica i, or of all with -1.
func (w *step) tell(kind api.VerifyFindingKind, i int, extent storage.ExtentIndex, format string, args ...any) {
	f := api.VerifyFinding{Kind: kind, Group: w.group, Extent: extent, Text: fmt.Sprintf(format, args...)}
	if i >= 0 {
		f.Node, f.NodeName = w.replicas[i].Node, w.replicas[i].name
	}
	if len(w.out.Findings) < api.MaxVerifyFindings {
		w.out.Findings = append(w.out.Findings, f)
	}
}

// askAll asks all replicas the same, and returns the answers in their order. ok is false if one does not answer, which was told, or is busy. An
// error is of KindUnsupported, and names the node that does not know the question.
func (w *step) askAll(ctx context.Context, r op.VerifyRequest) (answers []op.VerifyAnswer, ok bool, err error) {
	answers, errs := make([]op.VerifyAnswer, len(w.replicas)), make([]error, len(w.replicas))
	var asking errgroup.Group
	for i, to := range w.replicas {
		asking.Go(func() error {
			answers[i], errs[i] = w.Ask(ctx, to.Node, Request{w.group, to.Key, r})
			return nil
		})
	}
	_ = asking.Wait()
	ok = true
	for i, err := range errs {
		switch {
		case errors.Is(err, storage.ErrUnsupported):
			return nil, false, storage.E("verify", storage.KindUnsupported, "node "+w.replicas[i].name, fmt.Errorf(
				"it runs a release that cannot verify volumes: start it with the release of the others, which finishes the upgrade: %w", storage.Cause(err)))
		case err != nil:
			ok = false
			w.tell(api.FoundUnchecked, i, 0, "%v", err)
		case answers[i].Busy:
			ok, w.out.Busy = false, true
		}
	}
	return answers, ok, ctx.Err()
}

// note counts what a replica has found.
func (w *step) note(i int, a *op.VerifyAnswer) {
	w.out.Bytes += a.Bytes
	w.out.Mended += a.Mended
	w.out.Lost = max(w.out.Lost, a.Lost) // what is lost is lost at all of them
	w.out.Waiting += a.Waiting
	w.out.DamagedPages += a.DamagedPages
	if a.Lost > 0 {
		w.tell(api.FoundLost, i, 0, "%d blocks cannot be read there, nor at any other replica: reads of them fail until they are overwritten, or restored from a backup", a.Lost)
	}
	if a.Waiting > 0 {
		w.tell(api.FoundWaiting, i, 0, "%d blocks are damaged there and not mended: a replica that may have them does not answer, or has other bytes there, or there is no "+
			"room. They are tried again by themselves; verify once more when all nodes are up", a.Waiting)
	}
	if a.DamagedPages > 0 {
		w.tell(api.FoundTables, i, 0, "%d pages of its tables are damaged: what they map was not looked at. Remove the node, and let it join again with an empty data directory",
			a.DamagedPages)
	}
}

// compare compares what the replicas have said of the extents before next. Each has looked at another moment: where they do not say the same,
// they are asked what they hold at one index of the log.
func (w *step) compare(ctx context.Context, answers []op.VerifyAnswer, next storage.ExtentIndex) error {
	said := map[storage.ExtentIndex][]op.ExtentContents{} // by replica; the zero value holds nothing
	for i := range answers {
		for _, x := range answers[i].Extents {
			if x.Extent >= next {
				continue
			}
			if said[x.Extent] == nil {
				said[x.Extent] = make([]op.ExtentContents, len(answers))
			}
			said[x.Extent][i] = x
		}
	}
	if len(answers) < 2 {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, settlePatience)
	defer cancel()
	for _, x := range slices.Sorted(maps.Keys(said)) {
		w.out.Compared++
		if alike(said[x]) {
			continue
		}
		if w.settle(within, x); ctx.Err() != nil {
			return storage.E("verify", storage.KindCanceled, "volume "+w.volume.Name, ctx.Err())
		}
	}
	return nil
}

// alike reports whether all replicas hold the same; one whose tables are damaged, which is told, does not count.
func alike(all []op.ExtentContents) bool {
	all = slices.DeleteFunc(slices.Clone(all), func(c op.ExtentContents) bool { return c.Damaged })
	return !slices.ContainsFunc(all, func(c op.ExtentContents) bool { return c.Contents != all[0].Contents })
}

const (
	// settleTries is how often replicas are compared that were not to be compared before: one was started again between, for example.
	settleTries = 3
	// settlePatience bounds all comparisons of a step: a replica may be far behind, and the step has to end.
	settlePatience = 8 * time.Second
)

// settle compares what the replicas hold of an extent at one index, that of a Digest.
func (w *step) settle(ctx context.Context, x storage.ExtentIndex) {
	var why error
	for range settleTries {
		if why = ctx.Err(); why != nil {
			break
		}
		token := max(1, rand.Uint64())
		if why = w.Propose(ctx, w.group, op.Op{Kind: op.Digest, Volume: w.volume.ID, Extent: x, Seq: token}); why != nil {
			continue
		}
		all, err := w.digests(ctx, token)
		if err != nil {
			why = err
			continue
		}
		if !alike(all) {
			w.differ(x, all)
		}
		return
	}
	w.tell(api.FoundUncompared, -1, x, "its replicas said different things at different moments, and could not be compared at one: verify once more (%v)", why)
}

// digests returns what the replicas held at the entry with that token.
func (w *step) digests(ctx context.Context, token uint64) ([]op.ExtentContents, error) {
	all, errs := make([]op.ExtentContents, len(w.replicas)), make([]error, len(w.replicas))
	var asking errgroup.Group
	for i, to := range w.replicas {
		asking.Go(func() error {
			a, err := w.Ask(ctx, to.Node, Request{w.group, to.Key, op.VerifyRequest{Volume: w.volume.ID, Token: token}})
			if err == nil && len(a.Extents) != 1 {
				err = storage.E("verify", storage.KindInternal, "node "+to.name, fmt.Errorf("%d answers to one question", len(a.Extents)))
			}
			if errs[i] = err; err == nil {
				all[i] = a.Extents[0]
			}
			return nil
		})
	}
	_ = asking.Wait()
	err := errors.Join(errs...)
	if slices.ContainsFunc(all, func(x op.ExtentContents) bool { return x.Index != all[0].Index }) { // it was proposed twice, and one has forgotten the first
		err = errors.Join(err, errors.New("the replicas have not looked at the same index"))
	}
	return all, err
}

// differ tells which replicas are not as most are.
func (w *step) differ(x storage.ExtentIndex, all []op.ExtentContents) {
	votes, compared := map[op.Contents][]int{}, 0
	for i, c := range all {
		if !c.Damaged {
			votes[c.Contents] = append(votes[c.Contents], i)
			compared++
		}
	}
	for c, of := range votes {
		if 2*len(of) <= compared {
			continue
		}
		for i := range all {
			if !all[i].Damaged && all[i].Contents != c {
				w.tell(api.FoundDiffers, i, x, "at index %d it holds other blocks of extent %d than the other %d replicas. Nothing was changed: remove the node, "+
					"and let it join again with an empty data directory, so that its replicas are made anew from the others", all[i].Index, x, len(of))
			}
		}
		return
	}
	var says []string
	for i, c := range all {
		if !c.Damaged {
			says = append(says, fmt.Sprintf("node %s %s", w.replicas[i].name, c.Contents))
		}
	}
	w.tell(api.FoundDiffers, -1, x, "at index %d its replicas hold different blocks of extent %d, and no majority the same: %s. Nothing was changed. Stop what uses the volume, keep all "+
		"nodes, and compare the volume with a backup", all[0].Index, x, strings.Join(says, ", "))
}
