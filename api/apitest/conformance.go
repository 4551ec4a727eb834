package apitest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// Conformance checks what every api.Cluster promises about volumes, nodes, groups and status. open returns a cluster
// that has at least one node and one group and no volumes; it is called once a subtest.
func Conformance(t *testing.T, open func(t *testing.T) api.Cluster) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, context.Context, api.Cluster)
	}{
		{"create", conformCreate},
		{"create again", conformCreateAgain},
		{"list", conformList},
		{"resize", conformResize},
		{"modify", conformModify},
		{"labels", conformLabels},
		{"delete", conformDelete},
		{"verify", conformVerify},
		{"readers", conformReaders},
		{"shows the cluster", conformShows},
		{"upgrade", conformUpgrade},
		{"backup", conformBackup},
		{"canceled", conformCanceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			c.run(t, ctx, open(t))
		})
	}
}

func mustCreate(t *testing.T, ctx context.Context, c api.Cluster, name string, sizeBytes int64) api.Volume {
	t.Helper()
	v, err := c.CreateVolume(ctx, api.NewVolume{RequestID: "make-" + name, Name: name, SizeBytes: sizeBytes})
	if err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	return v
}

func wantKind(t *testing.T, what string, err error, kind storage.Kind) {
	t.Helper()
	if storage.KindOf(err) != kind {
		t.Errorf("%s: %v (%v), want %v", what, err, storage.KindOf(err), kind)
	}
}

func conformCreate(t *testing.T, ctx context.Context, c api.Cluster) {
	made := mustCreate(t, ctx, c, "web", 8<<20)
	if made.ID == 0 || made.Name != "web" || made.SizeBytes != 8<<20 || made.State != storage.VolumeReady {
		t.Errorf("made %+v", made)
	}
	if n := len(made.Groups); n == 0 || n&(n-1) != 0 {
		t.Errorf("striped over %d groups, want a power of two", n)
	}
	got, err := c.Volume(ctx, "web")
	if err != nil || got.ID != made.ID || got.SizeBytes != made.SizeBytes || !slices.Equal(got.Groups, made.Groups) {
		t.Errorf("got %+v, %v; made %+v", got, err, made)
	}
	_, err = c.Volume(ctx, "nobody")
	wantKind(t, "a volume that was never made", err, storage.KindNotFound)
	if other := mustCreate(t, ctx, c, "db", 4096); other.ID <= made.ID {
		t.Errorf("id %d follows %d, want ascending ones", other.ID, made.ID)
	}
}

func conformCreateAgain(t *testing.T, ctx context.Context, c api.Cluster) {
	made := mustCreate(t, ctx, c, "web", 8<<20)
	if again := mustCreate(t, ctx, c, "web", 8<<20); again.ID != made.ID {
		t.Errorf("the same request made volume %d, then %d", made.ID, again.ID)
	}
	_, err := c.CreateVolume(ctx, api.NewVolume{RequestID: "another", Name: "web", SizeBytes: 8 << 20})
	wantKind(t, "another request for the name", err, storage.KindExists)
	_, err = c.CreateVolume(ctx, api.NewVolume{RequestID: "make-web", Name: "web", SizeBytes: 16 << 20})
	if err == nil {
		t.Error("the request id with another size was accepted")
	}
}

func conformList(t *testing.T, ctx context.Context, c api.Cluster) {
	if list, err := c.Volumes(ctx, api.VolumeFilter{}, "", 10); err != nil || len(list) != 0 {
		t.Fatalf("a new cluster lists %v, %v", list, err)
	}
	var want []string
	for i := range 5 {
		name := fmt.Sprintf("v%d", 4-i)
		mustCreate(t, ctx, c, name, 4096)
		want = append(want, name)
	}
	slices.Sort(want)
	var got []string
	for after := ""; ; after = got[len(got)-1] {
		page, err := c.Volumes(ctx, api.VolumeFilter{}, after, 2)
		if err != nil || len(page) > 2 {
			t.Fatalf("page after %q: %d volumes, %v; want at most 2", after, len(page), err)
		}
		for _, v := range page {
			got = append(got, v.Name)
		}
		if len(page) < 2 {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
}

func conformResize(t *testing.T, ctx context.Context, c api.Cluster) {
	mustCreate(t, ctx, c, "web", 8<<20)
	for _, size := range []int64{8 << 20, 16 << 20, 16 << 20} { // the present size is not an error
		if v, err := c.ResizeVolume(ctx, "web", api.NewSize{Bytes: size}); err != nil || v.SizeBytes != size {
			t.Errorf("resize to %d: %d, %v", size, v.SizeBytes, err)
		}
	}
	_, err := c.ResizeVolume(ctx, "web", api.NewSize{Bytes: 8 << 20})
	wantKind(t, "shrinking", err, storage.KindInvalid)
	_, err = c.ResizeVolume(ctx, "nobody", api.NewSize{Bytes: 8 << 20})
	wantKind(t, "resizing what is not there", err, storage.KindNotFound)
	if v, err := c.Volume(ctx, "web"); err != nil || v.SizeBytes != 16<<20 {
		t.Errorf("after all: %d bytes, %v", v.SizeBytes, err)
	}
}

func conformModify(t *testing.T, ctx context.Context, c api.Cluster) {
	request := api.NewVolume{RequestID: "limited", Name: "web", SizeBytes: 8 << 20, Limits: storage.VolumeLimits{MaxIOPS: 500}}
	made, err := c.CreateVolume(ctx, request)
	if err != nil || made.Limits != request.Limits {
		t.Fatalf("made with limits: %+v, %v", made, err)
	}
	bytes, none := int64(64<<20), int64(0)
	for _, change := range []struct {
		id storage.VolumeID
		api.VolumeChange
		want storage.VolumeLimits
	}{
		{0, api.VolumeChange{Limits: storage.LimitsChange{MaxBytesPerSecond: &bytes}}, storage.VolumeLimits{MaxIOPS: 500, MaxBytesPerSecond: bytes}},
		{made.ID, api.VolumeChange{Limits: storage.LimitsChange{MaxIOPS: &none}}, storage.VolumeLimits{MaxBytesPerSecond: bytes}},
		{made.ID, api.VolumeChange{Limits: storage.LimitsChange{MaxIOPS: &none}}, storage.VolumeLimits{MaxBytesPerSecond: bytes}}, // again is not an error
		{0, api.VolumeChange{}, storage.VolumeLimits{MaxBytesPerSecond: bytes}},
	} {
		if v, err := c.ModifyVolume(ctx, "web", change.id, change.VolumeChange); err != nil || v.Limits != change.want || v.ID != made.ID {
			t.Errorf("modified to %+v, %v; want %+v", v, err, change.want)
		}
		if v, err := c.Volume(ctx, "web"); err != nil || v.Limits != change.want {
			t.Errorf("shown as %+v, %v; want %+v", v, err, change.want)
		}
		if list, err := c.Volumes(ctx, api.VolumeFilter{}, "", 1); err != nil || len(list) != 1 || list[0].Limits != change.want {
			t.Errorf("listed as %+v, %v; want %+v", list, err, change.want)
		}
	}
	_, err = c.ModifyVolume(ctx, "web", made.ID+1, api.VolumeChange{Limits: storage.LimitsChange{MaxIOPS: &none}})
	wantKind(t, "modifying under another id", err, storage.KindNotFound)
	_, err = c.ModifyVolume(ctx, "nobody", 0, api.VolumeChange{Limits: storage.LimitsChange{MaxIOPS: &none}})
	wantKind(t, "modifying what is not there", err, storage.KindNotFound)
	_, err = c.CreateVolume(ctx, request)
	if err == nil {
		t.Error("the request id with other limits than the volume has was accepted")
	}
}

func conformLabels(t *testing.T, ctx context.Context, c api.Cluster) {
	type labels = map[string]string
	request := api.NewVolume{RequestID: "labelled", Name: "v1", SizeBytes: 4096, Labels: labels{"env": "prod", "example.com/team": "shop"}}
	for range 2 { // again is the same request
		if made, err := c.CreateVolume(ctx, request); err != nil || !maps.Equal(made.Labels, request.Labels) {
			t.Fatalf("made with labels: %+v, %v", made, err)
		}
	}
	for _, name := range []string{"v0", "v2", "v3"} {
		mustCreate(t, ctx, c, name, 4096)
	}
	iops := int64(500)
	for name, change := range map[string]api.VolumeChange{
		"v1": {Labels: storage.LabelChange{Set: labels{"env": "test", "tier": ""}, Remove: []string{"example.com/team", "nosuch"}}, Limits: storage.LimitsChange{MaxIOPS: &iops}},
		"v3": {Labels: storage.LabelChange{Set: labels{"env": "prod"}}},
	} {
		v, err := c.ModifyVolume(ctx, name, 0, change)
		if err != nil || !maps.Equal(v.Labels, change.Labels.Set) || (v.Limits.MaxIOPS == iops) != (change.Limits.MaxIOPS != nil) {
			t.Errorf("changed to %+v, %v", v, err)
		}
		if v, err := c.Volume(ctx, name); err != nil || !maps.Equal(v.Labels, change.Labels.Set) {
			t.Errorf("shown as %+v, %v", v, err)
		}
	}
	for _, s := range []struct {
		labels storage.LabelSelector
		want   []string
	}{
		{nil, []string{"v0", "v1"}}, {storage.LabelSelector{"env"}, []string{"v1", "v3"}}, {storage.LabelSelector{"env=prod"}, []string{"v3"}},
		{storage.LabelSelector{"env=test", "tier"}, []string{"v1"}}, {storage.LabelSelector{"env=prod", "tier"}, nil},
	} {
		var names []string
		list, err := c.Volumes(ctx, api.VolumeFilter{Labels: s.labels}, "", 2) // those that are not selected do not count
		for _, v := range list {
			names = append(names, v.Name)
		}
		if err != nil || !slices.Equal(names, s.want) {
			t.Errorf("of %q there are %q, %v; want %q", s.labels, names, err, s.want)
		}
	}
	many := api.VolumeChange{Labels: storage.LabelChange{Set: labels{}}, Limits: storage.LimitsChange{MaxIOPS: &iops}}
	for i := range storage.MaxLabels {
		many.Labels.Set[fmt.Sprint("k", i)] = "v"
	}
	_, err := c.ModifyVolume(ctx, "v3", 0, many)
	wantKind(t, "one label too many", err, storage.KindInvalid)
	if v, err := c.Volume(ctx, "v3"); err != nil || len(v.Labels) != 1 || v.Limits.MaxIOPS != 0 {
		t.Errorf("what was refused made %+v, %v", v, err)
	}
	if _, err := c.CreateVolume(ctx, request); err == nil {
		t.Error("the request id with other labels than the volume has was accepted")
	}
}

func conformDelete(t *testing.T, ctx context.Context, c api.Cluster) {
	made := mustCreate(t, ctx, c, "web", 8<<20)
	wantKind(t, "deleting under another id", c.DeleteVolume(ctx, "web", made.ID+1), storage.KindNotFound)
	if err := c.DeleteVolume(ctx, "web", made.ID); err != nil {
		t.Fatalf("delete: %v", err)
	}
	wantKind(t, "deleting what is not there", c.DeleteVolume(ctx, "nobody", 0), storage.KindNotFound)
	again, err := c.CreateVolume(ctx, api.NewVolume{RequestID: "second", Name: "web", SizeBytes: 4096})
	if err != nil || again.ID <= made.ID {
		t.Errorf("the name is taken again by volume %d (%v); the deleted one was %d", again.ID, err, made.ID)
	}
}

// conformReaders: readers and those who may write exclude each other; those who share do not.
func conformVerify(t *testing.T, ctx context.Context, c api.Cluster) {
	made := mustCreate(t, ctx, c, "web", 64<<20)
	s := api.VerifyStep{Name: "web", RateBytes: 64 << 20}
	for steps := 0; ; steps++ {
		got, err := c.VerifyVolume(ctx, s)
		if err != nil || got.ID != made.ID || len(got.Findings) != 0 || steps > 2*len(made.Groups) {
			t.Fatalf("step %d: %+v, %v", steps, got, err)
		}
		if s.ID, s.Group, s.From = got.ID, got.Group, got.From; got.Done {
			break
		}
	}
	for _, s := range []api.VerifyStep{{Name: "nobody"}, {Name: "web", ID: made.ID + 1}} {
		_, err := c.VerifyVolume(ctx, s)
		wantKind(t, fmt.Sprintf("verify %+v", s), err, storage.KindNotFound)
	}
}

func conformReaders(t *testing.T, ctx context.Context, c api.Cluster) {
	mustCreate(t, ctx, c, "web", 8<<20)
	as := func(host string, access storage.Access) error {
		_, err := c.Attach(ctx, api.NewAttachment{Volume: storage.VolumeRef{Name: "web"}, Access: access, Holder: storage.Holder{ID: host, Kind: storage.HolderHost}})
		return err
	}
	leave := func(host string) {
		if err := c.Detach(ctx, api.Detachment{Volume: storage.VolumeRef{Name: "web"}, HolderID: host}); err != nil {
			t.Error(err)
		}
	}
	for _, host := range []string{"a", "b"} {
		if err := as(host, storage.AccessReaders); err != nil {
			t.Errorf("reader %s: %v", host, err)
		}
	}
	v, err := c.Volume(ctx, "web")
	if err != nil || len(v.Attachments) != 2 || !v.Attachments[0].ReadOnly || v.Attachments[0].Access != storage.AccessReaders {
		t.Errorf("two readers: %+v, %v", v.Attachments, err)
	}
	wantKind(t, "shared beside readers", as("c", storage.AccessShared), storage.KindConflict)
	wantKind(t, "exclusive beside readers", as("c", storage.AccessExclusive), storage.KindConflict)
	leave("a")
	leave("b")
	if err := as("c", storage.AccessShared); err != nil {
		t.Error(err)
	}
	wantKind(t, "a reader beside one who shares", as("a", storage.AccessReaders), storage.KindConflict)
	leave("c")
}

func conformShows(t *testing.T, ctx context.Context, c api.Cluster) {
	nodes, err := c.Nodes(ctx)
	if err != nil || len(nodes) == 0 || nodes[0].ID == 0 || nodes[0].Name == "" {
		t.Errorf("nodes %+v, %v", nodes, err)
	}
	groups, err := c.Groups(ctx)
	if err != nil || len(groups) == 0 || groups[0].ID == storage.CatalogGroup || len(groups[0].Replicas) == 0 {
		t.Errorf("groups %+v, %v", groups, err)
	}
	mustCreate(t, ctx, c, "web", 8<<20)
	s, err := c.Status(ctx)
	if err != nil || s.ClusterID.IsZero() || s.NodesTotal != len(nodes) || s.GroupsTotal != len(groups) || s.Health == "" {
		t.Errorf("status %+v, %v; there are %d nodes and %d groups", s, err, len(nodes), len(groups))
	}
	if s.Volumes != 1 || s.ProvisionedBytes != 8<<20 {
		t.Errorf("status counts %d volumes of %d bytes, want 1 of %d", s.Volumes, s.ProvisionedBytes, 8<<20)
	}
}

// conformUpgrade: what every node knows is put in force once, and nothing beyond it.
func conformUpgrade(t *testing.T, ctx context.Context, c api.Cluster) {
	s, err := c.Status(ctx)
	if err != nil || s.Version == 0 || s.VersionKnown < s.Version {
		t.Fatalf("status: version %d, every node knows %d, %v", s.Version, s.VersionKnown, err)
	}
	for _, to := range []int{0, s.VersionKnown, 1} {
		if v, err := c.Upgrade(ctx, to); v != s.VersionKnown || err != nil {
			t.Errorf("upgrade to %d: version %d is in force, %v; want %d", to, v, err, s.VersionKnown)
		}
	}
	_, err = c.Upgrade(ctx, s.VersionKnown+1)
	wantKind(t, "an upgrade to what nobody knows", err, storage.KindUnsupported)
	if s, err = c.Status(ctx); err != nil || s.Version != s.VersionKnown {
		t.Errorf("after the upgrade: version %d, every node knows %d, %v", s.Version, s.VersionKnown, err)
	}
}

// conformBackup: a copy of the catalog has what was made before it, whatever is asked next.
func conformBackup(t *testing.T, ctx context.Context, c api.Cluster) {
	mustCreate(t, ctx, c, "web", 8<<20)
	first, err := c.BackupCatalog(ctx)
	if err != nil || !bytes.HasPrefix(first, []byte("SDCATLOG")) || !bytes.Contains(first, []byte(`"name":"web"`)) {
		t.Fatalf("%d bytes, %v; want a catalog with the volume", len(first), err)
	}
	mustCreate(t, ctx, c, "db", 8<<20)
	second, err := c.BackupCatalog(ctx)
	if err != nil || !bytes.Contains(second, []byte(`"name":"db"`)) || bytes.Contains(first, []byte(`"name":"db"`)) {
		t.Errorf("%d bytes, %v; want a second volume in the second one only", len(second), err)
	}
}

func conformCanceled(t *testing.T, ctx context.Context, c api.Cluster) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	_, err := c.CreateVolume(ctx, api.NewVolume{Name: "web", SizeBytes: 4096})
	wantKind(t, "creating after cancel", err, storage.KindCanceled)
}
