package hostgateway

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/internal/logging"
	"github.com/storaged/storaged/nbd/attach"
)

// This file is about the end of the host. An umount, a sync or a service that writes may then wait for a device whose cluster cannot
// be reached and whose gateway is stopped. No later gateway will serve it. So the waiting is bounded, and no device is left behind.
// docs/attach.md says what comes when.

const whyDown = "the host goes down, and the cluster did not answer; its devices are attached again when it has started"

// HostDown implements host.Gateway.
func (g *Gateway) HostDown(context.Context) error {
	g.mu.Lock()
	first := !g.down && !g.closing
	g.down = true
	g.mu.Unlock()
	if !first {
		return nil
	}
	g.env.logger.Info("the host goes down: devices answer errors when the cluster does not answer", "for", g.config.HostDownTimeout)
	holdings := g.all()
	for _, h := range holdings {
		h.hurry()
	}
	g.wg.Go(func() { g.endUnserved(holdings) })
	return nil
}

func (g *Gateway) goesDown() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.down
}

func (g *Gateway) all() []*holding {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Values(g.holdings))
}

// hurry has the holding's requests end with an error when the cluster does not answer them for a while.
func (h *holding) hurry() {
	h.mu.Lock()
	handle := h.handle
	h.mu.Unlock()
	if handle != nil {
		handle.FailIfStuck(h.gateway.config.HostDownTimeout, whyDown)
	}
}

// endUnserved takes the devices apart, after a while, that an earlier gateway has made and this one does not serve yet: it has
// not reached the cluster.
func (g *Gateway) endUnserved(holdings []*holding) {
	if clock.Sleep(g.resuming, g.config.HostDownTimeout) != nil {
		return // leave does it, or nobody
	}
	var wg sync.WaitGroup
	for _, h := range holdings {
		wg.Go(func() {
			if h.served() != nil {
				return
			}
			h.endResume()
			ctx, cancel := context.WithTimeout(g.ctx, partTimeout)
			defer cancel()
			done, err := g.turn(ctx, h.record.Volume)
			if err != nil {
				return // it is being attached or detached, and those have bounds of their own
			}
			defer done()
			if h.served() == nil {
				g.takeApart(ctx, h)
			}
		})
	}
	wg.Wait()
}

// partTimeout bounds what it takes to take one device apart.
const partTimeout = 20 * time.Second

func (h *holding) served() attach.Device {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.device
}

// takeApart removes the device of a holding that is not served, by force, and keeps the record.
func (g *Gateway) takeApart(ctx context.Context, h *holding) {
	h.parted = true
	h.set(host.StateDetaching, whyDown)
	driver := g.drivers[h.record.Via]
	if driver == nil || !mayHaveUsers(driver, h.noted()) {
		return
	}
	log := g.logOf(h.record.Volume)
	if err := driver.Detach(ctx, h.noted()); err != nil {
		log.Error("the device is left behind although the host goes down", "device", h.record.Device, "error", err)
		return
	}
	log.Warn("nobody serves the device, and the host goes down: it is removed by force; what its users have not synced is lost", "device", h.record.Device)
}

// leave takes all devices apart, before the gateway stops.
func (g *Gateway) leave() {
	g.unresume()
	g.resumed.Wait()
	var wg sync.WaitGroup
	for _, h := range g.all() {
		wg.Go(func() { g.part(h) })
	}
	wg.Wait()
}

// part takes the device of a holding apart. What is mounted of it is unmounted, as the end of the host would do it soon without a
// gateway; its users, who end at this moment, have ShutdownTimeout for that. What they have not let go then is written out before it
// is taken away by force, and nobody comes across a mount of it any more.
func (g *Gateway) part(h *holding) {
	device := h.served()
	if device == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(g.ctx), partTimeout)
		defer cancel()
		g.takeApart(ctx, h)
		return
	}
	h.set(host.StateDetaching, whyDown)
	log := g.logOf(h.record.Volume)
	err := g.detachUnused(device)
	if err == nil {
		log.Info("the device is removed", "device", device.Path())
		return
	}
	log.Warn("the device is in use although the host goes down: what was written to it is written out, and it is removed by force", "device", device.Path(), "error", err)
	bounded := func(timeout time.Duration, do func(ctx context.Context) error) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(g.ctx), timeout)
		defer cancel()
		return do(ctx)
	}
	if err := bounded(writeOutTimeout, device.Sync); err != nil {
		log.Error("what was written and not synced is lost", "device", device.Path(), "error", err)
	}
	hide := func(ctx context.Context) error { return device.Unmount(ctx, true) }
	remove := func(ctx context.Context) error { return device.Detach(ctx, true) }
	if err := errors.Join(bounded(partTimeout, hide), bounded(partTimeout, remove)); err != nil {
		log.Error("the device is left behind although the host goes down", "device", device.Path(), "error", err)
	}
}

// writeOutTimeout bounds how long what is dirty may take to be written to a cluster that answers: one that does not has HostDownTimeout.
const writeOutTimeout = 2 * time.Minute

// detachUnused removes a device as soon as nobody has it open, and unmounts what is on it: KindConflict if its users take too long to let
// go.
func (g *Gateway) detachUnused(device attach.Device) error {
	users := time.NewTimer(g.config.ShutdownTimeout)
	defer users.Stop()
	for {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(g.ctx), writeOutTimeout)
		err := device.Detach(ctx, false)
		if errors.Is(err, storage.ErrConflict) {
			err = device.Unmount(ctx, false)
			if err == nil {
				err = device.Detach(ctx, false)
			}
		}
		cancel()
		if !errors.Is(err, storage.ErrConflict) {
			return err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-users.C:
			return err
		}
	}
}

// EndDevices removes the devices of this host when the host goes down and its gateway does not run. Their users get errors, instead
// of waiting for a gateway that does not come. KindConflict if a gateway runs.
func EndDevices(ctx context.Context, config Config, helper []string, logs io.Writer) error {
	if err := config.Validate(); err != nil {
		return err
	}
	logger, err := logging.New(config.LogLevel, config.LogFormat, logs)
	if err != nil {
		return err
	}
	g, err := newGateway(ctx, config, environment{logger: logger, metrics: prometheus.NewRegistry(), helper: helper})
	if err != nil {
		return err
	}
	records, err := g.state.records()
	for _, r := range records {
		g.holdings[r.Volume] = &holding{gateway: g, record: r, state: host.StateConnecting}
	}
	g.leave()
	return errors.Join(err, g.close(ctx))
}
