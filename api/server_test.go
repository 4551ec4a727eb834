package api_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/test/bufconn"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/apitest"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// serve runs a server over cluster until the test ends and returns a connection to it.
func serve(t *testing.T, config api.Config) (*api.Server, *grpc.ClientConn) {
	t.Helper()
	server, err := api.NewServer(config)
	if err != nil {
		t.Fatal(err)
	}
	listener := bufconn.Listen(64 << 10)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	conn, err := grpc.NewClient("passthrough:///node", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		server.Close() // idempotent
	})
	return server, conn
}

func ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Requests that can never succeed are refused before the cluster sees them, and the answer says what to do instead.
func TestValidation(t *testing.T) {
	fake := apitest.New(time.Now)
	fake.Fail(func(int) error { return errors.New("the cluster was asked") })
	_, conn := serve(t, api.Config{Cluster: fake})
	volumes, nodes := pb.NewVolumesClient(conn), pb.NewNodesClient(conn)
	create := func(r *pb.CreateVolumeRequest) func() error {
		return func() error { _, err := volumes.Create(ctx(t), r); return err }
	}
	for _, c := range []struct {
		name string
		do   func() error
		want []string
	}{
		{"no name", create(&pb.CreateVolumeRequest{SizeBytes: 4096}), []string{"name is empty", "use 1 to 63"}},
		{"bad name", create(&pb.CreateVolumeRequest{Name: "Web", SizeBytes: 4096}), []string{`volume "Web"`, `'W' is not allowed`}},
		{"long name", create(&pb.CreateVolumeRequest{Name: strings.Repeat("a", 64), SizeBytes: 4096}), []string{"64 characters"}},
		{"no size", create(&pb.CreateVolumeRequest{Name: "web"}), []string{"volume web", "at least 4096 bytes"}},
		{"negative", create(&pb.CreateVolumeRequest{Name: "web", SizeBytes: -1}), []string{"at least 4096 bytes"}},
		{"odd size", create(&pb.CreateVolumeRequest{Name: "web", SizeBytes: 5000}), []string{"multiple of 4096", "8192"}},
		{"huge", create(&pb.CreateVolumeRequest{Name: "web", SizeBytes: 1 << 62}), []string{"at most 256 TiB"}},
		{"stripe", create(&pb.CreateVolumeRequest{Name: "web", SizeBytes: 4096, GroupCount: 3}), []string{"power of two"}},
		{"wide stripe", create(&pb.CreateVolumeRequest{Name: "web", SizeBytes: 4096, GroupCount: 1 << 31}), []string{"power of two"}},
		{"long id", create(&pb.CreateVolumeRequest{Name: "web", SizeBytes: 4096, RequestId: strings.Repeat("x", 65)}), []string{"65 characters"}},
		{"odd id", create(&pb.CreateVolumeRequest{Name: "web", SizeBytes: 4096, RequestId: "a b"}), []string{"0x20"}},
		{"get", func() error { _, err := volumes.Get(ctx(t), &pb.GetVolumeRequest{Name: "-"}); return err }, []string{"show", "hyphen"}},
		{"list", func() error { _, err := volumes.List(ctx(t), &pb.ListVolumesRequest{PageToken: "!"}); return err }, []string{"page token"}},
		{"resize", func() error {
			_, err := volumes.Resize(ctx(t), &pb.ResizeVolumeRequest{Name: "web", SizeBytes: 4097})
			return err
		}, []string{"resize volume web", "8192"}},
		{"odd limits", create(&pb.CreateVolumeRequest{Name: "web", SizeBytes: 4096, Limits: &pb.VolumeLimits{MaxIops: 1}}), []string{"create volume web", "no limit"}},
		{"modify", func() error {
			_, err := volumes.Modify(ctx(t), &pb.ModifyVolumeRequest{Name: "web", MaxBytesPerSecond: new(int64(-1))})
			return err
		}, []string{"modify volume web", "-1 bytes a second", "no limit"}},
		{"odd label", create(&pb.CreateVolumeRequest{Name: "web", SizeBytes: 4096, Labels: map[string]string{"env": "a b"}}),
			[]string{"create volume web", `label "env"`, `"a b"`, "letter or digit"}},
		{"set odd label", func() error {
			_, err := volumes.Modify(ctx(t), &pb.ModifyVolumeRequest{Name: "web", SetLabels: map[string]string{"a/b/c": ""}})
			return err
		}, []string{"modify volume web", `label "a/b/c"`}},
		{"remove odd label", func() error {
			_, err := volumes.Modify(ctx(t), &pb.ModifyVolumeRequest{Name: "web", RemoveLabels: []string{"/a"}})
			return err
		}, []string{"modify volume web", `label "/a"`, "DNS name"}},
		{"list odd label", func() error {
			_, err := volumes.List(ctx(t), &pb.ListVolumesRequest{Labels: []string{"env=a=b"}})
			return err
		}, []string{"list volumes", `label "env"`, `"a=b"`}},
		{"modify nothing", func() error { _, err := volumes.Modify(ctx(t), &pb.ModifyVolumeRequest{}); return err }, []string{"modify", "empty"}},
		{"delete", func() error { _, err := volumes.Delete(ctx(t), &pb.DeleteVolumeRequest{}); return err }, []string{"delete", "empty"}},
		{"node", func() error { _, err := nodes.Get(ctx(t), &pb.GetNodeRequest{}); return err }, []string{"names no node"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := api.ErrorFromStatus(c.do(), "", "")
			if !errors.Is(err, storage.ErrInvalid) {
				t.Fatalf("answer %v (%v), want invalid", err, storage.KindOf(err))
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("answer %q does not say %q", err, want)
				}
			}
		})
	}
	if err := api.ErrorFromStatus(create(&pb.CreateVolumeRequest{Name: strings.Repeat("x", 1<<20)})(), "", ""); err == nil ||
		errors.Is(err, storage.ErrInternal) {
		t.Errorf("a request of 1 MiB: %v, want it refused for its size", err)
	}
}

func TestNodeByNameOrID(t *testing.T) {
	fake := apitest.New(time.Now)
	fake.Edit(func(nodes *[]api.Node, _ *[]api.Group, _ *api.Status) { (*nodes)[2].Name = "1" })
	_, conn := serve(t, api.Config{Cluster: fake})
	for ref, want := range map[string]uint32{"a": 1, "2": 2, "3": 3, "name:1": 3, "id:1": 1, "id:3": 3, "name:a": 1} {
		got, err := pb.NewNodesClient(conn).Get(ctx(t), &pb.GetNodeRequest{Node: ref})
		if err != nil || got.GetNode().GetId() != want {
			t.Errorf("node %q is %d, %v; want %d", ref, got.GetNode().GetId(), err, want)
		}
	}
	for ref, want := range map[string]struct {
		kind error
		text string
	}{
		"z":             {storage.ErrNotFound, `node "z": no node has that name or id`},
		"0":             {storage.ErrNotFound, `node "0"`},
		"-1":            {storage.ErrNotFound, `node "-1"`},
		"02":            {storage.ErrNotFound, `node "02"`},
		"name:2":        {storage.ErrNotFound, "no node has that name"},
		"id:a":          {storage.ErrNotFound, "no node has that id"},
		"id:4294967298": {storage.ErrNotFound, "no node has that id"}, // 2 in 32 bits
		"id:":           {storage.ErrNotFound, "no node has that id"},
		"":              {storage.ErrInvalid, "names no node"},
		"1": {storage.ErrInvalid, `node 1: it is the name of the node with id 3, and the id of the node with name a; ` +
			`write name:1 or id:1`},
	} {
		_, err := pb.NewNodesClient(conn).Get(ctx(t), &pb.GetNodeRequest{Node: ref})
		if err := api.ErrorFromStatus(err, "", ""); !errors.Is(err, want.kind) || !strings.Contains(err.Error(), want.text) {
			t.Errorf("node %q: %v, want %q", ref, err, want.text)
		}
	}
	fake.Edit(func(nodes *[]api.Node, _ *[]api.Group, _ *api.Status) { (*nodes)[0].Name, (*nodes)[2].Name = "1", "c" })
	if got, err := pb.NewNodesClient(conn).Get(ctx(t), &pb.GetNodeRequest{Node: "1"}); err != nil || got.GetNode().GetId() != 1 {
		t.Errorf("a node whose name is its own id: %v, %v", got, err)
	}
}

// More requests than Limits.InFlight are refused at once and without effect; when one ends, the next is admitted.
func TestRequestsInFlightAreBounded(t *testing.T) {
	blocked := &blockingCluster{Cluster: apitest.New(time.Now), begun: make(chan struct{}), release: make(chan struct{})}
	registry := prometheus.NewRegistry()
	_, conn := serve(t, api.Config{Cluster: blocked, Limits: api.Limits{InFlight: 2}, Metrics: registry})
	client := pb.NewClusterClient(conn)
	var running sync.WaitGroup
	for range 2 {
		running.Go(func() {
			if _, err := client.Status(ctx(t), &pb.GetStatusRequest{}); err != nil {
				t.Errorf("an admitted request: %v", err)
			}
		})
		<-blocked.begun
	}
	_, err := client.Status(ctx(t), &pb.GetStatusRequest{})
	if err := api.ErrorFromStatus(err, "", ""); !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "not begun") {
		t.Errorf("the third request: %v, want it refused", err)
	}
	close(blocked.release)
	running.Wait()
	if _, err := client.Version(ctx(t), &pb.GetVersionRequest{}); err != nil {
		t.Errorf("after the others ended: %v", err)
	}
	if families, err := registry.Gather(); err != nil || len(families) != 3 {
		t.Errorf("%d metric families, %v; want 3", len(families), err)
	}
}

// A caller without a deadline gets the server's.
func TestDeadline(t *testing.T) {
	blocked := &blockingCluster{Cluster: apitest.New(time.Now), begun: make(chan struct{}, 1), release: make(chan struct{})}
	_, conn := serve(t, api.Config{Cluster: blocked, Limits: api.Limits{Timeout: 10 * time.Millisecond}})
	_, err := pb.NewClusterClient(conn).Status(context.Background(), &pb.GetStatusRequest{})
	if err := api.ErrorFromStatus(err, "", ""); !errors.Is(err, storage.ErrCanceled) {
		t.Errorf("got %v, want it ended by the server", err)
	}
}

// blockingCluster answers Status only when it is released, or its context ends.
type blockingCluster struct {
	*apitest.Cluster
	begun, release chan struct{}
}

func (c *blockingCluster) Status(ctx context.Context) (api.Status, error) {
	c.begun <- struct{}{}
	select {
	case <-c.release:
		return c.Cluster.Status(ctx)
	case <-ctx.Done():
		return api.Status{}, ctx.Err()
	}
}

func TestHealthAndReflection(t *testing.T) {
	server, conn := serve(t, api.Config{Cluster: apitest.New(time.Now)})
	check := func(service string) healthpb.HealthCheckResponse_ServingStatus {
		r, err := healthpb.NewHealthClient(conn).Check(ctx(t), &healthpb.HealthCheckRequest{Service: service})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetStatus()
	}
	for _, serving := range []bool{false, true, false} {
		server.SetServing(serving)
		want := healthpb.HealthCheckResponse_NOT_SERVING
		if serving {
			want = healthpb.HealthCheckResponse_SERVING
		}
		for _, service := range []string{"", "storage.v1.Volumes"} {
			if got := check(service); got != want {
				t.Errorf("health of %q is %v, want %v", service, got, want)
			}
		}
	}
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if text := answer.String(); !strings.Contains(text, "storage.v1.Volumes") || !strings.Contains(text, "storage.v1.Cluster") {
		t.Errorf("reflection lists %s", text)
	}
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := api.NewServer(api.Config{}); !errors.Is(err, storage.ErrInvalid) {
		t.Errorf("a server without a cluster: %v", err)
	}
	registry := prometheus.NewRegistry()
	if _, err := api.NewServer(api.Config{Cluster: apitest.New(time.Now), Metrics: registry}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.NewServer(api.Config{Cluster: apitest.New(time.Now), Metrics: registry}); err == nil {
		t.Error("metrics were registered twice without an error")
	}
	if v := api.BuildVersion(); v.Version == "" || v.GoVersion == "" || !strings.Contains(v.Platform, "/") {
		t.Errorf("version %+v", v)
	}
}
