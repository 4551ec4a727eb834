// Package e2e tests three real storaged processes from outside: growth from one node to three, the loss of each
// node, restarts and refusals. The tests need build tag e2e and a binary (`make e2e`); those with network
// namespaces need tag netns and root as well.
package e2e
