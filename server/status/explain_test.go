package status

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// explained is whole, with what a decision needs: members that have acknowledged everything.
func explained() *picture {
	p := whole()
	p.now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for g := range p.groups {
		p.groups[g].LastIncarnation = 3
	}
	p.report(1, func(r *placement.NodeReport) {
		for i := range r.Replicas {
			r.Replicas[i].Commit, r.Replicas[i].Last, r.Replicas[i].ConfigIndex = 1000, 1000, 5
			for n := storage.NodeID(1); n <= 3; n++ {
				r.Replicas[i].Members = append(r.Replicas[i].Members, placement.Member{Key: replicaOf(n), Node: n, Voter: true, AckedIndex: 1000})
			}
		}
	})
	return p
}

func texts(lines []api.Reason) (out []string) {
	for _, l := range lines {
		out = append(out, string(l.Severity)+" "+l.Subject+": "+l.Text)
	}
	return out
}

// TestExplainGroup: of each replica it says how it is, and of the group what comes next, as the leader would decide.
func TestExplainGroup(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*picture)
		want   []string // the lines that differ from those of a whole group
	}{
		"whole": {func(*picture) {}, []string{"ok group 1: it is as it is meant to be", "ok group 1: node a leads it; 1000 entries are committed there",
			"ok group 1: its replica on node b (voter) has all that was committed, or nearly", "ok group 1: volumes with a part in it: 1 (db)"}},
		"one lags": {func(p *picture) {
			p.report(1, func(r *placement.NodeReport) { r.Replicas[0].Members[1].AckedIndex = 100 })
		}, []string{"degraded group 1: its replica on node b (voter) lags: it has not acknowledged the last 900 entries"}},
		"one is out of service": {func(p *picture) {
			p.report(2, func(r *placement.NodeReport) {
				r.Replicas[0].State, r.Replicas[0].Reason = placement.ReplicaDamaged, "its log is damaged"
			})
		}, []string{"degraded group 1: its replica on node b (voter) is out of service: its log is damaged"}},
		"one is down, and will be replaced": {func(p *picture) {
			p.silent(2, storage.NodeDown)
			p.nodes[1].SilentSince, p.repairAfter = p.now.Add(-10*time.Minute), 5*time.Minute
			p.nodes = append(p.nodes, storage.Node{ID: 4, Name: "d", State: storage.NodeUp, Stores: []storage.Store{{ID: storage.StoreID{4}}}})
			p.names[4] = "d"
			p.report(4, func(r *placement.NodeReport) {
				r.Stores = []placement.StoreReport{{ID: storage.StoreID{4}, CapacityBytes: 1 << 30, FreeBytes: 1 << 30}}
			})
		}, []string{"degraded group 1: its replica on node b (voter) is not there: the node is down for 10m0s; its replicas are made anew on other nodes",
			"degraded group 1: next: plan on node d"}},
		"one is copied": {func(p *picture) {
			p.report(3, func(r *placement.NodeReport) {
				r.Replicas[0].State, r.Replicas[0].PulledBytes, r.Replicas[0].PullBytes, r.Replicas[0].PullStartedAt = placement.ReplicaPulling, 1<<30, 3<<30, p.now.Add(-time.Minute)
			})
			p.groups[0].Replicas[2].Role = storage.RolePulling
		}, []string{"degraded group 1: its replica on node c (pulling) is being copied: 1GiB of 3GiB, 17.1MiB a second, 2m0s left"}},
		"nobody leads": {func(p *picture) {
			p.report(1, func(r *placement.NodeReport) { r.Replicas[0].State = placement.ReplicaFollower })
		}, []string{"critical group 1: nobody leads it: what lies in it is neither read nor written", "degraded group 1: it waits: nobody leads it, or its leader is not heard of"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := explained()
			p.volumes = []storage.Volume{{Name: "db", Groups: []storage.GroupID{1}}}
			c.change(p)
			e := explanation{p: p, kind: api.ObjectGroup}
			e.group(p.groups[0])
			got := texts(e.lines)
			for _, w := range c.want {
				if !slices.Contains(got, w) {
					t.Errorf("it does not say %q:\n%s", w, strings.Join(got, "\n"))
				}
			}
			if well := slices.ContainsFunc(got, func(l string) bool { return strings.Contains(l, "as it is meant to be") }); well != (name == "whole" || name == "one lags") {
				t.Errorf("well: %v:\n%s", well, strings.Join(got, "\n"))
			}
		})
	}
}

// TestExplainNode: what is the matter with it is what status says; its replicas that are not well are named, and what stands still without it.
func TestExplainNode(t *testing.T) {
	say := func(p *picture, id storage.NodeID) string {
		e := explanation{p: p, kind: api.ObjectNode}
		nodes := p.apiNodes()
		e.node(nodes[slices.IndexFunc(nodes, func(n api.Node) bool { return n.ID == id })])
		return strings.Join(texts(e.lines), "\n")
	}
	p := explained()
	if got := say(p, 2); !strings.Contains(got, "it is up; groups with a replica on it: 2, of which it leads 0") || !strings.Contains(got, "without it nothing stands still; 2 groups have one working copy fewer") ||
		strings.Contains(got, "degraded") {
		t.Errorf("of a node that is well:\n%s", got)
	}
	p.silent(3, storage.NodeDown)
	p.nodes[2].SilentSince = p.now.Add(-time.Hour)
	if got := say(p, 2); !strings.Contains(got, "critical node b: without it groups 1, 2 stand still") {
		t.Errorf("with another one down:\n%s", got)
	}
	if got := say(p, 3); !strings.Contains(got, "it is down, silent since 2026-03-04 04:06 UTC") || !strings.Contains(got, "degraded node c: down") || strings.Contains(got, "without it") {
		t.Errorf("of the one that is down:\n%s", got)
	}
	p = explained()
	p.report(2, func(r *placement.NodeReport) {
		r.Replicas[1].State, r.Replicas[1].Reason = placement.ReplicaDamaged, "its log is damaged"
	})
	if got := say(p, 2); !strings.Contains(got, "group 2: its replica on node b (voter) is out of service: its log is damaged") || strings.Contains(got, "group 1:") {
		t.Errorf("with a damaged replica:\n%s", got)
	}
}

// TestExplainVolume: who has it, and of its groups those that are not well.
func TestExplainVolume(t *testing.T) {
	p := explained()
	v := api.Volume{Volume: storage.Volume{Name: "db", SizeBytes: 1 << 30, Groups: []storage.GroupID{1, 2}}}
	say := func() string {
		e := explanation{p: p, kind: api.ObjectVolume}
		e.volume(v)
		return strings.Join(texts(e.lines), "\n")
	}
	if got := say(); got != "ok volume db: it has 1GiB in groups 1, 2\nok volume db: nobody has it\nok volume db: all its groups are as they are meant to be" {
		t.Errorf("of a volume that is well:\n%s", got)
	}
	v.Attachments = []api.Attachment{{Attachment: storage.Attachment{Holder: storage.Holder{ID: "h", Kind: storage.HolderHost, Host: "web-1"}, Access: storage.AccessExclusive, Since: p.now}}}
	v.Sessions = []api.Session{{NodeName: "web-1", OpenedAt: p.now}}
	v.Connections = []api.Connection{{NodeName: "b", Client: "10.0.0.7:1"}}
	v.Generation, v.Fenced = 3, 2
	p.report(1, func(r *placement.NodeReport) { r.Replicas[1].State = placement.ReplicaFollower })
	got := say()
	for _, want := range []string{"host web-1 (holder h) has it (exclusive), since 2026-03-04 05:06 UTC", "it is open through web-1 since", "NBD client 10.0.0.7:1 is connected to node b",
		"a former holder is being shut out", "critical group 2: nobody leads it"} {
		if !strings.Contains(got, want) {
			t.Errorf("it does not say %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "group 1") || strings.Contains(got, "as they are meant to be") {
		t.Errorf("of group 1, which is well, it says something:\n%s", got)
	}
}

// TestExplainIsFound: what is not there is told so; without the catalog's leader it says that what comes next nobody decides.
func TestExplainIsFound(t *testing.T) {
	w, v := newWorld(t)
	w.reports = map[storage.NodeID]placement.Heard{1: {}}
	for kind, ref := range map[api.ObjectKind]string{api.ObjectNode: "9", api.ObjectGroup: "9", api.ObjectVolume: "nosuch"} {
		if _, err := v.Explain(t.Context(), kind, ref); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s %s: %v", kind, ref, err)
		}
	}
	if _, err := v.Explain(t.Context(), "moon", "1"); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("of the moon: %v", err)
	}
	w.Must(catalog.CreateVolume{Name: "db", SizeBytes: 1 << 20, At: time.Now()})
	w.CatchUp()
	for kind, ref := range map[api.ObjectKind]string{api.ObjectNode: "1", api.ObjectGroup: "1", api.ObjectVolume: "db"} {
		if lines, err := v.Explain(t.Context(), kind, ref); err != nil || len(lines) < 2 {
			t.Errorf("%s %s: %v, %v", kind, ref, lines, err)
		}
	}
	w.reports = nil
	if lines, err := v.Explain(t.Context(), api.ObjectGroup, "1"); err != nil || !strings.Contains(lines[len(lines)-1].Text, "its leader does not answer") {
		t.Errorf("alone: %v, %v", lines, err)
	}
}
