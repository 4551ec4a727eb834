package server

import (
	"slices"
	"testing"
	"time"

	"github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/control"
	"github.com/storaged/storaged/server/export"
	"github.com/storaged/storaged/server/placement"
)

// TestConnectionsOfAVolume: a volume's connections are those that fresh reports name for it, whichever node they are of.
func TestConnectionsOfAVolume(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	heard := func(age time.Duration, list ...placement.Connection) control.Heard {
		return control.Heard{Age: age, Report: placement.NodeReport{Connections: list}}
	}
	p := &picture{nodes: []catalog.Node{{ID: 1, Name: "a"}, {ID: 2, Name: "b"}, {ID: 3, Name: "c"}, {ID: 4, Name: "d"}},
		reports: map[storage.NodeID]control.Heard{
			1: heard(0, placement.Connection{Volume: "v", Client: "x:1", Since: since}, placement.Connection{Volume: "w", Client: "x:2"}),
			2: heard(time.Second, placement.Connection{Volume: "v", Client: "y:1", ReadOnly: true, Since: since}),
			3: heard(staleReport, placement.Connection{Volume: "v", Client: "z:1"}),
		}}
	want := []api.Connection{{Node: 1, NodeName: "a", Client: "x:1", OpenedAt: since},
		{Node: 2, NodeName: "b", Client: "y:1", ReadOnly: true, OpenedAt: since}}
	if got := p.connections("v"); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	p.reports = nil
	if got := p.connections("v"); got != nil {
		t.Errorf("without reports: %+v", got)
	}
}

// TestReportsNameSoManyConnections (I9): a node with thousands of clients does not send them all every second.
func TestReportsNameSoManyConnections(t *testing.T) {
	list := slices.Repeat([]export.Connection{{Volume: "v", Client: "x:1"}}, placement.MaxConnections+1)
	if n := len(connectionReports(list)); n != placement.MaxConnections {
		t.Errorf("%d connections are reported", n)
	}
	if got := connectionReports(list[:1]); len(got) != 1 || got[0].Volume != "v" || got[0].Client != "x:1" {
		t.Errorf("%+v", got)
	}
}
