package catalog

import (
	"testing"

	storage "github.com/storaged/storaged"
)

// Two machines that call themselves one host (a copied machine, or two nodes with one name) do not take a volume from each
// other. While the first is heard from, the second is refused, and told who has the volume. A gateway that is started again on
// its machine follows itself at once. When the first has fallen silent, the second comes in as by a takeover. The lines are the
// calls of elsewhere in OpenSession and of usedElsewhere and Machine.Kept in Attach and Detach.
func TestTwoMachinesOfOneName(t *testing.T) {
	const here, boot, other = storage.Machine("m1.b1"), storage.Machine("m1.b2"), storage.Machine("m2.b1")
	f := newFixture(t)
	f.node(1)
	f.group(1)
	v := f.volume("v")
	attach := func(m storage.Machine) Attach {
		c := onHost("a", storage.AccessExclusive)
		c.Holder.Machine = m
		return c
	}
	open := func(m storage.Machine, instance string, at storage.AttachmentID) OpenSession {
		return OpenSession{Volume: storage.ByName("v"), Gateway: Gateway{Host: "a"}, Attachment: at, Instance: instance, Machine: m, From: "web at 10.0.0." + instance, At: testTime}
	}
	first := f.ok(attach(here)).Attachment
	one := f.ok(open(here, "1", first.ID)).Session
	if one.Machine != here || one.From != "web at 10.0.0.1" {
		t.Errorf("the session is %+v", one)
	}
	if again := f.ok(open(here, "2", first.ID)); len(again.Predecessors) != 1 || again.Session.ID == one.ID {
		t.Errorf("a gateway that was started again got %+v", again)
	}
	for _, m := range []storage.Machine{boot, other} {
		f.refused(attach(m), storage.KindConflict, "host a", "10.0.0.2", "--host-id")
		f.refused(open(m, "3", first.ID), storage.KindConflict, "host a", "10.0.0.2", "10.0.0.3", "since 2026")
		f.ok(Detach{Volume: storage.ByName("v"), Holder: "a", Attachment: first.ID, Machine: m, At: testTime})
		if _, ok := f.s.Attachment(first.ID); !ok {
			t.Fatalf("%s has ended what %s uses", m, here)
		}
	}
	f.ok(open("", "9", first.ID)) // of a version that does not say it
	silence := func() {
		for _, x := range f.s.SessionsOf(v.ID) {
			f.ok(ExpireSessions{[]storage.SessionID{x.ID}})
		}
	}
	silence()
	if same := f.ok(attach(boot)).Attachment; same.ID != first.ID {
		t.Errorf("the machine has started anew and got %+v", same)
	}
	if next := f.ok(open(boot, "4", first.ID)); len(next.Predecessors) == 0 {
		t.Error("what the first has left is not to be closed")
	}
	silence()
	taken := f.ok(attach(other))
	if taken.Attachment.ID == first.ID || taken.Volume.Generation != 2 || taken.Volume.Fenced != 1 {
		t.Fatalf("another machine got %+v of %+v", taken.Attachment, taken.Volume)
	}
	f.fence()
	f.refused(open(here, "5", first.ID), storage.KindFenced)
	f.ok(open(other, "6", taken.Attachment.ID))
	over := attach(here)
	over.TakeOver, over.IfGeneration = true, 2
	if back := f.ok(over); back.Volume.Generation != 3 {
		t.Errorf("taken over: %+v", back.Volume)
	}
}
