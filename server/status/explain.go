package status

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/internal/size"
	"github.com/storaged/storaged/server/placement"
)

// Explain answers api.Cluster. It is made of the same picture and the same judgements as Status, and of the step that the catalog's leader
// would take next for a group.
func (v *View) Explain(ctx context.Context, kind api.ObjectKind, ref string) ([]api.Reason, error) {
	p := v.look(ctx)
	e := explanation{p: p, kind: kind}
	switch kind {
	case api.ObjectNode:
		at := slices.IndexFunc(p.apiNodes(), func(n api.Node) bool { return n.ID.String() == ref })
		if at < 0 {
			return nil, storage.E("explain", storage.KindNotFound, "node "+ref, errors.New("there is no such node, or it was removed"))
		}
		e.node(p.apiNodes()[at])
	case api.ObjectGroup:
		at := slices.IndexFunc(p.groups, func(g storage.Group) bool { return g.ID.String() == ref })
		if at < 0 {
			return nil, storage.E("explain", storage.KindNotFound, "group "+strconv.Quote(ref), errors.New("there is none of that number; `storagectl group list` shows what there is"))
		}
		e.group(p.groups[at])
	case api.ObjectVolume:
		vol, err := v.find(ctx, ref)
		if err != nil {
			return nil, storage.E("explain", storage.KindOf(err), "volume "+ref, storage.Cause(err))
		}
		vol.Connections = p.connections(ref)
		e.volume(vol)
	default:
		return nil, storage.E("explain", storage.KindInvalid, ref, fmt.Errorf("there is nothing to say of a %s", kind))
	}
	if p.alone {
		e.say(api.HealthDegraded, "catalog", "its leader does not answer: this is what node "+p.names[p.self]+" knows by itself, and what comes next nobody decides", "")
	}
	return e.lines, nil
}

// explanation is what is said of one object, in the order in which it is to be read.
type explanation struct {
	p     *picture
	kind  api.ObjectKind
	lines []api.Reason
}

func (e *explanation) say(severity api.Health, subject, text, step string) {
	e.lines = append(e.lines, api.Reason{Severity: severity, Subject: subject, Text: text, NextStep: step})
}

// view is what decisions are made from, as far as this node can tell: with it the catalog's leader would decide so.
func (p *picture) view() placement.View {
	v := placement.View{Cluster: p.cluster, Nodes: p.nodes, Groups: p.groups, Reports: fresh(p.reports)}
	v.Away, _ = placement.Away(p.nodes, p.downFor, p.repairAfter)
	return v
}

// fresh returns the reports that count for decisions.
func fresh(reports map[storage.NodeID]placement.Heard) map[storage.NodeID]placement.NodeReport {
	out := make(map[storage.NodeID]placement.NodeReport, len(reports))
	for id, heard := range reports {
		if heard.Age < staleReport {
			out[id] = heard.Report
		}
	}
	return out
}

// downFor is how long a node has been silent; 0: it was not heard by this leader, nor is it recorded.
func (p *picture) downFor(n storage.Node) time.Duration {
	if n.SilentSince.IsZero() {
		return p.reports[n.ID].Age
	}
	return max(p.reports[n.ID].Age, p.now.Sub(n.SilentSince))
}

// group says who holds a group, who lags and why, what it waits for, and what comes next.
func (e *explanation) group(g storage.Group) {
	p, subject := e.p, "group "+g.ID.String()
	shown := p.apiGroup(g)
	switch {
	case g.State == storage.GroupCreating:
		e.say(api.HealthStarting, subject, "it is being made", "")
	case shown.Leader == 0:
		e.say(api.HealthCritical, subject, "nobody leads it: what lies in it is neither read nor written", "bring up the nodes of its voters; a majority is enough")
	default:
		e.say(api.HealthOK, subject, fmt.Sprintf("node %s leads it; %d entries are committed there", shown.LeaderName, shown.CommitIndex), "")
	}
	if e.kind == api.ObjectGroup {
		var in []string
		for _, vol := range p.volumes {
			if slices.Contains(vol.Groups, g.ID) {
				in = append(in, vol.Name)
			}
		}
		e.say(api.HealthOK, subject, fmt.Sprintf("volumes with a part in it: %d%s", len(in), few(in)), "")
	}
	for i, r := range shown.Replicas {
		e.replica(g, shown, r, g.Replicas[i])
	}
	if p.alone {
		return
	}
	switch step := placement.Next(p.view(), g); {
	case step.Kind != placement.StepNone:
		text := "next: " + step.Kind.String()
		if n := p.names[step.Node]; n != "" {
			text += " on node " + n
		}
		if step.Reason != "" {
			text += ", because " + step.Reason
		}
		e.say(api.HealthDegraded, subject, text, "")
	case step.Reason != "":
		e.say(api.HealthDegraded, subject, "it waits: "+step.Reason, "")
	default:
		e.say(api.HealthOK, subject, "it is as it is meant to be", "")
	}
}

// few are the first of some names, in brackets; empty if there are none.
func few(names []string) string {
	const most = 5
	switch {
	case len(names) == 0:
		return ""
	case len(names) > most:
		return fmt.Sprintf(" (%s and %d more)", strings.Join(names[:most], ", "), len(names)-most)
	}
	return " (" + strings.Join(names, ", ") + ")"
}

func (e *explanation) replica(g storage.Group, shown api.Group, r api.Replica, recorded storage.Replica) {
	subject := "group " + g.ID.String()
	n := e.p.nodeOf(r.Node)
	what := fmt.Sprintf("its replica on node %s (%s) ", n.Name, recorded.Role)
	switch {
	case r.Reason != "":
		e.say(api.HealthDegraded, subject, what+"is out of service: "+r.Reason, "")
	case !r.Online && n.State != storage.NodeUp:
		e.say(api.HealthDegraded, subject, what+"is not there: the node is "+string(n.State)+e.p.repair(api.Node{Node: n}), "")
	case !r.Online:
		e.say(api.HealthDegraded, subject, what+"is not heard of", "")
	case r.Progress != nil:
		e.say(api.HealthDegraded, subject, what+"is being copied: "+progressText(*r.Progress, e.p.now), "")
	case shown.Leader == r.Node:
		e.say(api.HealthOK, subject, what+"leads", "")
	case r.LagEntries > placement.PromotionLag:
		e.say(api.HealthDegraded, subject, fmt.Sprintf("%slags: it has not acknowledged the last %d entries", what, r.LagEntries), "")
	case recorded.Role == storage.RoleLeaving:
		e.say(api.HealthDegraded, subject, what+"leaves once another one has taken its place", "")
	default:
		e.say(api.HealthOK, subject, what+"has all that was committed, or nearly", "")
	}
}

// progressText says how far a copy is, and when it would be done at the rate so far.
func progressText(p api.Progress, now time.Time) string {
	text := fmt.Sprintf("%s of %s", size.Bytes(p.DoneBytes), size.Bytes(p.TotalBytes))
	took := now.Sub(p.StartedAt)
	if p.StartedAt.IsZero() || took < time.Second || p.DoneBytes <= 0 || p.DoneBytes >= p.TotalBytes {
		return text
	}
	rate := float64(p.DoneBytes) / took.Seconds()
	return fmt.Sprintf("%s, %s a second, %v left", text, size.Bytes(int64(rate)), roundly(time.Duration(float64(p.TotalBytes-p.DoneBytes)/rate*float64(time.Second))))
}

// nodeOf returns a node of the catalog; one without a state if it is not there.
func (p *picture) nodeOf(id storage.NodeID) storage.Node {
	for _, n := range p.nodes {
		if n.ID == id {
			return n
		}
	}
	return storage.Node{ID: id, Name: id.String()}
}

// node says how a node is, what it holds and leads, which of its replicas are not as they should be, and what would stand still without it.
func (e *explanation) node(n api.Node) {
	p, subject := e.p, "node "+n.Name
	state := string(n.State)
	if !n.SilentSince.IsZero() {
		state += ", silent since " + until(n.SilentSince)
	}
	e.say(api.HealthOK, subject, fmt.Sprintf("it is %s; groups with a replica on it: %d, of which it leads %d", state, len(p.groupsOn(n.ID)), n.Leaders), "")
	reasons, warnings := p.judgeNode(n, p.apiGroups())
	e.lines = append(append(e.lines, reasons...), warnings...)
	for _, g := range p.groups {
		recorded, on := g.OnNode(n.ID)
		if !on {
			continue
		}
		shown := p.apiGroup(g)
		for i, r := range shown.Replicas {
			if g.Replicas[i].Key == recorded.Key && (n.State == storage.NodeUp && !r.Online || r.Reason != "" || r.Progress != nil || r.LagEntries > placement.PromotionLag || recorded.Role != storage.RoleVoter) {
				e.replica(g, shown, r, recorded)
			}
		}
	}
	if p.alone || n.State != storage.NodeUp {
		return
	}
	stopped, thinner := placement.Without(p.view(), n.ID)
	switch {
	case len(stopped) > 0:
		e.say(api.HealthCritical, subject, fmt.Sprintf("without it groups %s stand still: they have no other majority that works", idTexts(stopped)), "do not stop it; `storagectl status` says what is missing")
	case len(thinner) > 0:
		e.say(api.HealthOK, subject, fmt.Sprintf("without it nothing stands still; %d groups have one working copy fewer", len(thinner)), "")
	}
}

func idTexts(ids []storage.GroupID) string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	return strings.Join(texts, ", ")
}

// volume says who has a volume, since when and how, and which of its groups are not as they should be, and why.
func (e *explanation) volume(vol api.Volume) {
	p, subject := e.p, "volume "+vol.Name
	e.say(api.HealthOK, subject, fmt.Sprintf("it has %s in groups %s", size.Bytes(vol.SizeBytes), idTexts(vol.Groups)), "")
	if vol.State == storage.VolumeDeleting {
		e.say(api.HealthDegraded, subject, "it is being deleted: every group has to forget it", "")
	}
	if vol.Fenced < vol.Generation {
		e.say(api.HealthDegraded, subject, "a former holder is being shut out: every group has to hear of it before the volume can be opened", "groups without a leader hold it up; see below")
	}
	for _, a := range vol.Attachments {
		text := fmt.Sprintf("%s has it (%s), since %s", a.Holder, a.Access, until(a.Since))
		if a.Silent {
			text += "; it was not heard of for long, and its sessions were ended"
		}
		e.say(api.HealthOK, subject, text, "")
	}
	if len(vol.Attachments) == 0 {
		e.say(api.HealthOK, subject, "nobody has it", "")
	}
	for _, s := range vol.Sessions {
		e.say(api.HealthOK, subject, fmt.Sprintf("it is open through %s since %s", s.NodeName, until(s.OpenedAt)), "")
	}
	for _, c := range vol.Connections {
		e.say(api.HealthOK, subject, fmt.Sprintf("NBD client %s is connected to node %s", c.Client, c.NodeName), "")
	}
	well := 0
	for _, id := range vol.Groups {
		at := slices.IndexFunc(p.groups, func(g storage.Group) bool { return g.ID == id })
		if at < 0 {
			continue
		}
		one := explanation{p: p, kind: e.kind}
		one.group(p.groups[at])
		if one.lines = slices.DeleteFunc(one.lines, func(r api.Reason) bool { return r.Severity == api.HealthOK }); len(one.lines) == 0 {
			well++
		}
		e.lines = append(e.lines, one.lines...)
	}
	if well == len(vol.Groups) {
		e.say(api.HealthOK, subject, "all its groups are as they are meant to be", "")
	}
}
