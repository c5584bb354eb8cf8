// Package ctl is what Fastnet's two kubectl plugins have in common: exit codes, one-line errors, progress, waiting, and
// the way to an API server.
package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// Exit codes of the plugins.
const (
	ExitOK      = 0
	ExitFailure = 1 // what was asked for could not be done
	ExitUsage   = 2 // what was asked for makes no sense
)

// UsageError is a mistake on the command line.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }
func (e UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// Args makes a check of arguments a UsageError.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(command *cobra.Command, args []string) error {
		if err := check(command, args); err != nil {
			return UsageError{err}
		}
		return nil
	}
}

// Subcommands is the Args of a command that only holds others.
func Subcommands(command *cobra.Command, args []string) error {
	if len(args) > 0 {
		return Usagef("unknown command %q for %q", args[0], command.CommandPath())
	}
	return nil
}

// Help is the RunE of a command that only holds others.
func Help(command *cobra.Command, _ []string) error { return command.Help() }

// Main runs a plugin's root command and returns its exit code. Errors go to stderr, a line each.
func Main(ctx context.Context, root *cobra.Command, streams genericiooptions.IOStreams, args []string) int {
	root.SetArgs(args)
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.ErrOut)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return UsageError{err} })
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	for _, line := range Lines(err) {
		fmt.Fprintf(streams.ErrOut, "error: %s\n", line)
	}
	if usage := (UsageError{}); errors.As(err, &usage) {
		fmt.Fprintf(streams.ErrOut, "See '%s --help'.\n", command.CommandPath())
		return ExitUsage
	}
	return ExitFailure
}

// Lines takes joined errors apart, one line for each.
func Lines(err error) []string {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && strings.Contains(err.Error(), "\n") {
		var lines []string
		for _, one := range joined.Unwrap() {
			lines = append(lines, Lines(one)...)
		}
		return lines
	}
	return []string{strings.Join(strings.Fields(err.Error()), " ")}
}

// Explain puts what an API server's refusal or a lost connection means for the user in front of it.
func Explain(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: the API server does not accept these credentials (%w)", what, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s: these credentials may not do that (%w)", what, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: no answer in time (%w)", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Progress tells on stderr what a long command is at.
type Progress struct {
	Out io.Writer
	// Every is the pause between two signs of life of a step; zero is two seconds.
	Every time.Duration
}

// Say prints a line.
func (p Progress) Say(format string, args ...any) { fmt.Fprintf(p.Out, format+"\n", args...) }

// Step runs one step: its name first, then, while it lasts, how long it has taken and what it notes.
func (p Progress) Step(ctx context.Context, name string, run func(ctx context.Context, note func(string)) error) error {
	every := p.Every
	if every == 0 {
		every = 2 * time.Second
	}
	p.Say("* %s", name)
	var mutex sync.Mutex
	last := ""
	note := func(text string) {
		mutex.Lock()
		defer mutex.Unlock()
		last = text
	}
	start := time.Now()
	done := make(chan struct{})
	var ticking sync.WaitGroup
	ticking.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				mutex.Lock()
				text := last
				mutex.Unlock()
				if text != "" {
					text = ": " + text
				}
				p.Say("  %s%s", time.Since(start).Round(time.Second), text)
			}
		}
	})
	err := run(ctx, note)
	close(done)
	ticking.Wait()
	return err
}

// Await looks until check reports nothing left to wait for, four times a second, at most for the time given. What check
// last reported is in the error, and goes to note meanwhile. An error of check ends the wait, unless it may pass: an API
// server that is busy or starting again.
func Await(ctx context.Context, timeout time.Duration, note func(string), check func(context.Context) (left string, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	last := ""
	for {
		left, err := check(ctx)
		switch {
		case err != nil && ctx.Err() == nil && !mayPass(err):
			return err
		case err == nil && left == "":
			return nil
		case err == nil:
			last = left
			note(left)
		case ctx.Err() == nil:
			last = err.Error()
			note(last)
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("not done after %s: %s", timeout, last)
		case <-ticker.C:
		}
	}
}

func mayPass(err error) bool {
	if network := net.Error(nil); errors.As(err, &network) {
		return true
	}
	return apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err)
}
