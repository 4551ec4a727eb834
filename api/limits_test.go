package api_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/apitest"
	pb "github.com/storaged/storaged/proto/storage/v1"
)

// serveTCP is serve on a socket, so that clients have an address.
func serveTCP(t *testing.T, limits api.Limits) (address string, dial func() *grpc.ClientConn) {
	t.Helper()
	server, err := api.NewServer(api.Config{Cluster: apitest.New(time.Now), Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	server.SetServing(true)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return listener.Addr().String(), func() *grpc.ClientConn {
		conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
}

// Headers are bounded, and with them what a stream that stays open holds. Line: grpc.MaxHeaderListSize; without it the
// heap grows by the headers of all streams.
func TestHeadersAreBounded(t *testing.T) {
	_, dial := serveTCP(t, api.Limits{})
	client := healthpb.NewHealthClient(dial())
	if _, err := client.Check(metadata.AppendToOutgoingContext(ctx(t), "x", strings.Repeat("y", 8<<10)), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("8 KiB of headers: %v", err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 8 {
		large := metadata.AppendToOutgoingContext(ctx(t), "x", strings.Repeat("y", 4<<20))
		watch, err := client.Watch(large, &healthpb.HealthCheckRequest{})
		if err == nil {
			_, err = watch.Recv()
		}
		if err == nil {
			t.Fatal("a watch with 4 MiB of headers is served")
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 24<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	if _, err := healthpb.NewHealthClient(dial()).Check(ctx(t), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("the next client: %v", err)
	}
}

// Streams are bounded in number, for one address to a part of it, and what ends makes room. Line: grpc.StreamInterceptor.
func TestWatchesAreBounded(t *testing.T) {
	_, dial := serveTCP(t, api.Limits{Watches: 8})
	conn := dial()
	client := healthpb.NewHealthClient(conn)
	watch := func() (context.CancelFunc, error) {
		ctx, cancel := context.WithCancel(ctx(t))
		stream, err := client.Watch(ctx, &healthpb.HealthCheckRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return cancel, err
	}
	end, err := watch()
	if err != nil {
		t.Fatal(err)
	}
	reflect, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx(t))
	if err == nil {
		err = reflect.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	}
	if err == nil {
		_, err = reflect.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch(); status.Code(err) != codes.Unavailable {
		t.Errorf("the third of an address, of which two may run: %v, want Unavailable", err)
	}
	end()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if _, err := watch(); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("after one has ended: %v", err)
		}
	}
	if _, err := pb.NewClusterClient(conn).Status(ctx(t), &pb.GetStatusRequest{}); err != nil {
		t.Errorf("another request: %v", err)
	}
}

// An address gets a part of the connections, and what is over it is closed at once. Line: doors.Limit in Serve.
func TestConnectionsAreBounded(t *testing.T) {
	address, _ := serveTCP(t, api.Limits{Connections: 8})
	for range 2 {
		nc, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		// The server's settings come, so it was accepted.
		if _, err := io.ReadFull(nc, make([]byte, 9)); err != nil {
			t.Fatal(err)
		}
	}
	over, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	_ = over.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := over.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the third connection: %v", err)
	}
}

// A connection has an age, and with it every stream.
func TestConnectionsAge(t *testing.T) {
	_, dial := serveTCP(t, api.Limits{ConnectionAge: 50 * time.Millisecond})
	conn := dial()
	conn.Connect()
	for state := conn.GetState(); ; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx(t), state) {
			t.Fatal("the connection is never ended")
		}
		if state.String() == "READY" {
			return
		}
	}
}
