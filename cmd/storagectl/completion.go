package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/storaged/storaged/api"
)

// completionPatience bounds what a person who pressed Tab waits for.
const completionPatience = 2 * time.Second

// volumes returns all volumes; none when the cluster does not answer.
func (a *app) volumes(ctx context.Context) []api.Volume {
	client, err := a.client()
	if err != nil {
		return nil
	}
	list, _ := client.Volumes(ctx, api.VolumeFilter{}, "", 0)
	return list
}

// volumeNames returns the names of all volumes; nothing when the cluster does not answer.
func (a *app) volumeNames(ctx context.Context) []string {
	return views(a.volumes(ctx), func(v api.Volume) string { return v.Name })
}

// nodeNames returns the names of all nodes; nothing when the cluster does not answer.
func (a *app) nodeNames(ctx context.Context) []string {
	client, err := a.client()
	if err != nil {
		return nil
	}
	list, _ := client.Nodes(ctx)
	return views(list, func(n api.Node) string { return n.Name })
}

// ask runs names with the settings of the command line so far, as the shell asks while it is being typed.
func (a *app) ask(c *cobra.Command, names func(context.Context) []string) []string {
	if a.resolve() != nil {
		return nil
	}
	ctx := c.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	return names(ctx)
}

// completes completes up to limit arguments, without end if it is negative, with those of names that are not there yet.
func (a *app) completes(limit int, names func(context.Context) []string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if limit >= 0 && len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return slices.DeleteFunc(a.ask(c, names), func(n string) bool { return slices.Contains(args, n) }), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeTransfer completes a file and a volume, the volume at the position volumeAt.
func (a *app) completeTransfer(volumeAt int) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 1-volumeAt {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return a.completes(2, a.volumeNames)(c, args, typed)
	}
}
