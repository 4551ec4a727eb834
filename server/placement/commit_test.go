package placement_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// stepOn carries out the next steps of group 1 until there is none or one fails, and returns them.
func (d *driver) stepOn() (steps []placement.Step, failed error) {
	for range 50 {
		g, _ := d.s.Group(1)
		s := placement.Next(d.view(), g)
		if s.Kind == placement.StepNone {
			return steps, nil
		}
		steps = append(steps, s)
		if err := d.carryOut(s); err != nil {
			return steps, err
		}
	}
	d.t.Fatalf("no end: %v", kinds(steps))
	return nil, nil
}

// TestNothingIsDroppedBeforeItsRemovalIsCommitted guards I1 and I7 (tried: without the comparison of Commit and ConfigIndex in
// Next the data of a voter is deleted): the leader has appended the removal of a voter, but cannot commit it because the others'
// disks hang. In its own configuration the replica is gone; for everybody else it votes.
func TestNothingIsDroppedBeforeItsRemovalIsCommitted(t *testing.T) {
	d := three(t)
	d.addNode("")
	_, leader := d.w.Voters(1)
	out := leader%3 + 1
	g, _ := d.s.Group(1)
	r, _ := g.OnNode(out)
	d.must(catalog.SetReplica{Group: 1, Key: r.Key, Role: storage.RoleLeaving})
	for g, _ = d.s.Group(1); placement.Next(d.view(), g).Kind != placement.StepRemove; g, _ = d.s.Group(1) {
		if err := d.carryOut(placement.Next(d.view(), g)); err != nil {
			t.Fatal(err)
		}
	}
	for id := storage.NodeID(1); id <= 4; id++ {
		if id != leader {
			d.w.SetSlow(id, true)
		}
	}
	steps, err := d.stepOn()
	if err == nil {
		t.Errorf("the removal is committed by one of four")
	}
	again, _ := d.stepOn()
	if steps = append(steps, again...); kinds(steps) != "remove" {
		t.Errorf("steps while the removal is not committed: %s", kinds(steps))
	}
	d.w.SetUp(leader, false) // and with it the removal: the others go on with the voter
	for id := storage.NodeID(1); id <= 4; id++ {
		d.w.SetSlow(id, false)
	}
	if v, now := d.w.Voters(1); now == 0 || !slices.Contains(v, out) || !d.w.Holds(out, 1) {
		t.Fatalf("voters %v, leader %v", v, now)
	}
	d.w.SetUp(leader, true)
	d.settle()
	if v, _ := d.w.Voters(1); len(v) != 3 || slices.Contains(v, out) {
		t.Errorf("voters %v in the end", v)
	}
	if v := d.w.Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// TestNothingIsRecordedBeforeItIsCommitted: a promotion that is lost with its leader is not in the catalog, which would wait
// for it for ever.
func TestNothingIsRecordedBeforeItIsCommitted(t *testing.T) {
	d := newDriver(t, 1)
	d.addNode("")
	d.addGroups(1)
	d.settle()
	d.addNode("")
	d.addNode("")
	for g, _ := d.s.Group(1); placement.Next(d.view(), g).Kind != placement.StepPromote; g, _ = d.s.Group(1) {
		if err := d.carryOut(placement.Next(d.view(), g)); err != nil {
			t.Fatal(err)
		}
	}
	d.w.SetSlow(2, true)
	d.w.SetSlow(3, true)
	steps, _ := d.stepOn()
	more, _ := d.stepOn()
	g, _ := d.s.Group(1)
	if steps = append(steps, more...); kinds(steps) != "promote" || g.Count(storage.RoleVoter) != 1 {
		t.Errorf("steps while the promotion is not committed: %s; recorded: %v", kinds(steps), g.Replicas)
	}
	d.w.SetSlow(2, false)
	d.w.SetSlow(3, false)
	d.settle()
	d.wantWhole(t, 1, 2, 3)
}

// TestLostRecordIsMended: a catalog that, as in earlier versions, recorded a voter from a configuration that was lost is
// corrected automatically. If the record is newer than the report, the correction waits.
func TestLostRecordIsMended(t *testing.T) {
	d := three(t)
	v := d.view()
	g, _ := d.s.Group(1)
	_, leader := d.w.Voters(1)
	other := leader%3 + 1
	at := slices.IndexFunc(v.Reports[leader].Replicas, func(r placement.ReplicaReport) bool { return r.Group == 1 })
	report := &v.Reports[leader].Replicas[at]
	report.Members = slices.Clone(report.Members)
	for i, m := range report.Members {
		if m.Node == other {
			report.Members[i].Voter = false
		}
	}
	newer := slices.Clone(g.Replicas)
	for i := range newer {
		newer[i].ConfigIndex = report.ConfigIndex + 1
	}
	older := slices.Clone(g.Replicas)
	for i := range older {
		older[i].ConfigIndex = report.ConfigIndex - 1
	}
	g.Replicas = newer
	if s := placement.Next(v, g); s.Kind != placement.StepNone {
		t.Errorf("the record is newer than the report: %+v", s)
	}
	g.Replicas = older
	if s := placement.Next(v, g); s.Kind != placement.StepSetRole || s.Role != storage.RoleLeaving || s.Node != other {
		t.Errorf("the record was lost: %+v", s)
	}

	// The whole way: the record is of a promotion that no configuration holds.
	d = newDriver(t, 1)
	d.addNode("")
	d.addGroups(1)
	d.settle()
	d.addNode("")
	d.addNode("")
	for g, _ = d.s.Group(1); placement.Next(d.view(), g).Kind != placement.StepPromote; g, _ = d.s.Group(1) {
		if err := d.carryOut(placement.Next(d.view(), g)); err != nil {
			t.Fatal(err)
		}
	}
	r, _ := g.OnNode(2)
	d.must(catalog.SetReplica{Group: 1, Key: r.Key, Role: storage.RoleVoter}) // without an index: from before there was one
	d.settle()
	d.wantWhole(t, 1, 2, 3)
}

// TestNoVoterIsEverDropped: nodes die, disks hang, leaders change with what they have appended, and orders come late. The data
// of a replica that votes for anybody is never deleted, no recorded role is one that was lost, and the cluster ends whole.
func TestNoVoterIsEverDropped(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newDriver(t, 2)
		for range rapid.IntRange(4, 5).Draw(t, "nodes") {
			d.addNode("")
		}
		d.addGroups(2)
		d.settle()
		var pending []placement.Step
		for range rapid.IntRange(10, 120).Draw(t, "steps") {
			nodes := d.s.Nodes()
			n := nodes[rapid.IntRange(0, len(nodes)-1).Draw(t, "node")]
			gid := storage.GroupID(rapid.IntRange(1, 2).Draw(t, "group"))
			switch rapid.IntRange(0, 12).Draw(t, "what") {
			case 0:
				d.w.SetUp(n.ID, !d.w.Up(n.ID))
			case 1, 2:
				d.w.SetSlow(n.ID, rapid.Bool().Draw(t, "slow"))
			case 3:
				g, _ := d.s.Group(gid)
				if r := rapid.SampledFrom(g.Replicas).Draw(t, "replica"); g.Count(storage.RoleLeaving) == 0 {
					_ = d.apply(catalog.SetReplica{Group: g.ID, Key: r.Key, Role: storage.RoleLeaving})
				}
			case 4:
				d.w.Write(gid, uint64(rapid.IntRange(1, 200).Draw(t, "entries")), uint64(rapid.IntRange(0, 100).Draw(t, "lag")))
			case 5:
				for _, s := range pending {
					_ = d.carryOut(s)
				}
				pending = nil
			default:
				v := d.view()
				for _, g := range d.s.Groups() {
					if s := placement.Next(v, g); rapid.IntRange(0, 3).Draw(t, "late") == 0 {
						pending = append(pending, s)
					} else {
						_ = d.carryOut(s)
					}
				}
			}
			if v := d.w.Violations(); len(v) > 0 {
				t.Fatalf("%v", v)
			}
		}
		for _, n := range d.s.Nodes() {
			d.w.SetSlow(n.ID, false)
			d.w.SetUp(n.ID, true)
		}
		d.settle()
		for _, g := range d.s.Groups() {
			voters, leader := d.w.Voters(g.ID)
			if len(voters) != 3 || leader == 0 || g.Count(storage.RoleVoter) != 3 || len(g.Replicas) != 3 {
				t.Fatalf("group %v has voters %v, leader %v; the catalog says %v", g.ID, voters, leader, g.Replicas)
			}
		}
		if v := d.w.Violations(); len(v) > 0 {
			t.Fatalf("%v", v)
		}
	})
}
